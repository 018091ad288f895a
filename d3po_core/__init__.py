"""Preference tuning of diffusion models without a reward model: D3PO (arXiv 2311.13231) on recorded trajectories.

The core sees a model only as a denoiser, ``denoise(x, sigma) -> x0`` with x [B, C, H, W] and sigma [B], guidance
applied and gradients flowing. It knows nothing of ComfyUI.
"""
