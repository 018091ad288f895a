"""The small model in this process: sampling many prompts together, decoding, and a LoRA that can be trained.

The network is ComfyUI's own, from its loader. It computes in bfloat16, as models do on the cards that artists
own, or in float32 where the processor is faster at that; the LoRA is float32. Sampling is the pack's
ancestral step without the host around it: a test holds it against the host's own sampler.
"""

import hashlib
import sys
import time
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

from d3po_core.candidates.images import CleanCandidates
from d3po_core.candidates.kernels import Ancestral, FlowAncestral
from d3po_core.candidates.trajectory import Trajectory
from tools.host import CHECKPOINT, FLOW_CHECKPOINT, comfyui_folder
from tools.launch_host import mend_torchaudio, mend_torchvision, torch_is_cpu_build

LATENT = (4, 8, 8)
PER_PASS = 24  # latents that go through the network together: a quarter faster than 96
BASE = "base"  # the policy of the model as it is


@cache
def comfy():
    """ComfyUI's package, on the processor."""
    if torch_is_cpu_build():
        mend_torchvision()
        mend_torchaudio()
    sys.path.insert(0, str(comfyui_folder()))
    arguments, sys.argv = sys.argv, ["comfyui", "--cpu", "--dont-print-server"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.samplers
        import comfy.sd
    finally:
        sys.argv = arguments
    return comfy


@cache
def fastest():
    """The dtype that this processor convolves fastest in: without instructions for bfloat16 it takes twenty
    times as long as float32, and with them a fifth."""

    def seconds(dtype):
        x, weight = torch.ones(4, 320, 8, 8, dtype=dtype), torch.ones(320, 320, 3, 3, dtype=dtype)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            torch.nn.functional.conv2d(x, weight)
            times.append(time.perf_counter() - began)
        return min(times)

    return min((torch.bfloat16, torch.float32), key=seconds)


class Studio:
    """The model, its prompts and its pictures.

    dtype  what the network computes in; None: the fastest
    flow   the flow model in place of the epsilon model
    keep   a folder where the base's recordings are kept: sessions of a seed begin with the same ones,
           whatever their taste
    """

    def __init__(self, dtype=None, flow=False, keep=None):
        self.flow, self.keep, self.dtype = flow, keep, dtype or fastest()
        self.prediction, self.kernel = ("flow", FlowAncestral) if flow else ("epsilon", Ancestral)
        self.scheduler = "simple" if flow else "normal"
        self.name = (FLOW_CHECKPOINT if flow else CHECKPOINT).stem
        host = comfy()
        cast = host.model_management.unet_manual_cast
        host.model_management.unet_manual_cast = lambda *arguments, **options: None  # compute in dtype itself
        try:
            with torch.inference_mode(False):
                patcher, self.clip, self.vae, _ = host.sd.load_checkpoint_guess_config(
                    str(FLOW_CHECKPOINT if flow else CHECKPOINT), model_options={"dtype": self.dtype}
                )
        finally:
            host.model_management.unet_manual_cast = cast
        self.model, self.patcher = patcher.model, patcher
        if flow:  # as the stock ModelSamplingSD3 node at shift 1
            kinds = host.model_base
            self.model.model_sampling = kinds.model_sampling(self.model.model_config, kinds.ModelType.FLOW)
        self.network = self.model.diffusion_model.requires_grad_(False)
        self.levels = self.model.model_sampling.sigmas.float()
        self._texts = {}

    def text(self, prompt):
        """[1, tokens, width]"""
        if prompt not in self._texts:
            encoded = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))
            self._texts[prompt] = encoded[0][0].detach().clone()
        return self._texts[prompt]

    def x0(self, x, sigma, texts):
        """The network's x0 of latents [B, C, H, W] at sigma [B] under texts [B, tokens, width]."""
        return self.model.apply_model(x, sigma, c_crossattn=texts).float()

    def denoiser(self, prompt, cfg=1.0):
        """denoise(x, sigma) -> x0 of one prompt, guided by cfg."""
        positive, negative = self.text(prompt), self.text("")

        def denoise(x, sigma):
            n = len(x)
            if cfg == 1:
                return self.x0(x, sigma, positive.expand(n, -1, -1))
            texts = torch.cat([negative.expand(n, -1, -1), positive.expand(n, -1, -1)])
            without, prompted = self.x0(torch.cat([x, x]), torch.cat([sigma, sigma]), texts).chunk(2)
            return without + cfg * (prompted - without)

        return denoise

    def sigmas(self, steps):
        """The host's schedule, [steps + 1]."""
        return comfy().samplers.calculate_sigmas(self.model.model_sampling, self.scheduler, steps).float()

    @torch.no_grad()
    def record(
        self, prompts, seeds, candidates, steps=10, cfg=2.0, eta=1.0, policy=BASE, first=None, window=None
    ):
        """A Trajectory for each prompt and seed, all sampled together.

        policy  names the weights as they are
        first   noises [candidates, C, H, W] of each prompt to begin with; else its candidates share one
        window  (first step, steps) that are random and recorded; None: all
        """
        asked = prompts, seeds, candidates, steps, cfg, eta
        kept = self.keep and policy == BASE and not (first or window)
        states, denoised, final = self._kept(asked) if kept else self._sampled(*asked, first, window)
        begin, count = window or (0, steps)
        sigmas = self.sigmas(steps)
        return [
            Trajectory(
                states=states[i].clone(),
                denoised=denoised[i].clone(),
                sigmas=sigmas[begin : begin + count + 1].clone(),
                kernel=self.kernel(eta),
                set_id=f"{prompt} {seed}",
                model=self.name,
                policy=policy,
                settings={"seed": seed, "cfg": cfg, "prompt": prompt},
                schedule=window and sigmas,
                final=window and final[i].clone(),
            )
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]

    def _kept(self, asked):
        """`_sampled`, from disk where it is there."""
        name = hashlib.sha256(repr((self.name, str(self.dtype), asked)).encode()).hexdigest()[:16]
        file = self.keep / f"{name}.pt"
        if not file.exists():
            self.keep.mkdir(parents=True, exist_ok=True)
            whole = file.with_suffix(f".{time.monotonic_ns()}")
            torch.save(self._sampled(*asked), whole)
            whole.replace(file)
        return torch.load(file)

    def _sampled(self, prompts, seeds, candidates, steps, cfg, eta, first=None, window=None):
        """(states, denoised, final) by prompt, as Trajectory has them."""
        kernel, sigmas = self.kernel(eta), self.sigmas(steps)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        first = torch.cat(
            first or [torch.randn(1, *LATENT, generator=g).repeat(candidates, 1, 1, 1) for g in generators]
        )
        blank = torch.zeros_like(first)
        x = self.model.model_sampling.noise_scaling(sigmas[:1, None, None, None], first, blank, True)
        begin, count = window or (0, steps)
        states, denoised = [], []
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:])):
            x0 = self._guided(x, sigma, prompts, candidates, cfg)
            if begin <= i < begin + count:
                noise = torch.cat([torch.randn(candidates, *LATENT, generator=g) for g in generators])
                states.append(x)
                denoised.append(x0)
                x = kernel.mean(x, x0, sigma, following) + kernel.std(sigma, following).float() * noise
            else:
                x = x + (x - x0) / sigma * (following - sigma)
            if i == begin + count - 1:
                states.append(x)
        by_prompt = [torch.stack(parts).split(candidates, 1) for parts in (states, denoised)]
        return *by_prompt, x.split(candidates)

    def _guided(self, x, sigma, prompts, candidates, cfg):
        positive = torch.cat([self.text(prompt).expand(candidates, -1, -1) for prompt in prompts])
        parts = []
        for some, texts in zip(x.split(PER_PASS // 2), positive.split(PER_PASS // 2)):
            n = len(some)
            both = torch.cat([self.text("").expand(n, -1, -1), texts])
            out = self.x0(torch.cat([some, some]), sigma.expand(2 * n), both)
            parts.append(out[:n] + cfg * (out[n:] - out[:n]))
        return torch.cat(parts)

    def finished(self, trajectory):
        """A recording's final latents as CleanCandidates; images alone are what they are."""
        if not trajectory.recorded:
            return trajectory
        return CleanCandidates(
            trajectory.finished,
            self.levels,
            self.prediction,
            trajectory.set_id,
            trajectory.model,
            trajectory.settings,
        )

    @torch.no_grad()
    def pictures(self, latents):
        """Images [N, H, W, 3] in 0...1 of latents [N, C, H, W] in the model's space."""
        images = self.vae.decode(self.model.process_latent_out(latents))
        return images.float().clamp(0, 1).numpy().astype(np.float64)

    @contextmanager
    def adapter(self, **shape):
        """An adapter in the network, and out again."""
        from d3po_core.training.adapter import Adapter

        adapter = Adapter(self.network, device=torch.device("cpu"), **shape)
        try:
            yield adapter
        finally:
            adapter.eject()
