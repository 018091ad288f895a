"""Preference tuning of diffusion models without a reward model: D3PO (arXiv 2311.13231) on trajectories.

The core sees a model only as a denoiser, ``denoise(x, sigma) -> x0`` with x [B, C, H, W] and sigma [B].
Guidance is applied and gradients flow. The core knows nothing of ComfyUI.

The names below are what other code may rely on; each is loaded where it is first used.
"""

import importlib

_PLACES = {
    "Ancestral": "candidates.kernels",
    "kl": "candidates.kernels",
    "log_prob": "candidates.kernels",
    "log_ratio": "candidates.kernels",
    "jpeg_size": "candidates.objectives",
    "pairs_from_scores": "candidates.judgement",
    "d3po": "training.losses",
    "diffusion_dpo": "training.losses",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
