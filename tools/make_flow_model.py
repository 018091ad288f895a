"""Distil the small emoji model into a flow model, on a CPU.

The shipped model predicts noise. At every flow level s it also tells the velocity: there x = (1 - s) x0 + s n
is (1 - s) times a latent at sigma = s / (1 - s), and the velocity is (x - x0) / s with the x0 that the model
finds in that latent. A copy of its UNet learns this velocity at timestep 1000 s, which is what ComfyUI's flow
models are asked for. Nothing but the shipped weights is needed:

    python -m tools.make_flow_model COMFYUI WORK train --minutes 40
    python -m tools.make_flow_model COMFYUI WORK pack

Training saves as it goes and resumes where it stopped. COMFYUI and WORK as in make_model.py.
"""

import lzma
import random

import torch
from safetensors.torch import save
from torch.nn.attention import SDPBackend, sdpa_kernel

from d3po_core.candidates.kernels import Ancestral
from tools.expand_model import AN, COMPACT, FLOW, A, expand, unpacked
from tools.make_model import (
    LATENT,
    Text,
    alphas_cumprod,
    compacted,
    convolve_by_product,
    new_unet,
    save_report,
    stage_wanted,
    tokenize,
    train,
)
from tools.model_pictures import COLOURS, OBJECTS, caption

UNET = "model.diffusion_model."
SAMPLES, STEPS, PER_PASS = 1280, 8, 64  # latents of the teacher to begin with
GUIDANCE = (1.0, 2.5)  # that they were sampled with
PROMPTS = [(name, colour) for name in OBJECTS for colour in COLOURS]


class Teacher:
    """The shipped model: eps(x, sigma, texts) of latents x = x0 + sigma n, [N, 4, 8, 8], at sigma [N]."""

    def __init__(self):
        compact = unpacked(COMPACT)
        self.weights = {
            name.removeprefix(UNET): weight.float()
            for name, weight in expand(compact).items()
            if name.startswith(UNET)
        }
        self.unet = unet_of(self.weights).requires_grad_(False)
        self.texts = texts_of(compact)
        kept = alphas_cumprod()
        self.sigmas = ((1 - kept) / kept).sqrt()

    def eps(self, x, sigma, texts):
        at = torch.searchsorted(self.sigmas, sigma.contiguous()).clamp(1, len(self.sigmas) - 1)
        low, high = self.sigmas[at - 1].log(), self.sigmas[at].log()
        timestep = (at - 1 + (sigma.log() - low) / (high - low)).clamp(0, len(self.sigmas) - 1)
        scaled = x / (1 + sigma.square()).sqrt()[:, None, None, None]
        return self.unet(scaled.to(memory_format=torch.channels_last), timestep, texts).float()

    def sample(self, prompts, rng):
        """Latents of the prompts, by the ancestral sampler under guidance drawn from GUIDANCE."""
        n, kernel = len(prompts), Ancestral()
        cfg = torch.tensor([rng.uniform(*GUIDANCE) for _ in range(n)])[:, None, None, None]
        texts = torch.cat([self.texts[-1:].expand(n, -1, -1), self.texts[prompts]])
        levels = [*self.sigmas[torch.linspace(999, 0, STEPS).long()], torch.tensor(0.0)]
        x = levels[0] * torch.randn(n, 4, LATENT, LATENT)
        for sigma, following in zip(levels, levels[1:]):
            blank, prompted = self.eps(torch.cat([x, x]), sigma.expand(2 * n), texts).chunk(2)
            x0 = x - sigma * (blank + cfg * (prompted - blank))
            noise = kernel.std(sigma, following).float() * torch.randn_like(x)
            x = kernel.mean(x, x0, sigma, following) + noise
        return x


def unet_of(weights):
    unet = new_unet()
    unet.load_state_dict(weights)
    convolve_by_product(unet)
    return unet


def texts_of(compact):
    """What the UNet reads of every prompt, [prompts + 1, tokens, width]; the last is of no words."""
    text = Text(compact["text.tokens"].tolist())
    names = [name for name in compact if name.startswith("text.") and name != "text.tokens"]
    text.load_state_dict({name.removeprefix("text."): compact[name].float() for name in names})
    text.index.setdefault(AN, text.index[A])
    with torch.no_grad():
        return text([tokenize(words) for words in [*(caption(*prompt) for prompt in PROMPTS), ""]])


def teacher_samples(work, teacher):
    """(latents, indices of their prompts) that the teacher made."""
    path = work / "flow_latents.pt"
    if not path.exists():
        rng = random.Random(0)
        torch.manual_seed(0)
        prompts = torch.arange(SAMPLES) % len(PROMPTS)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = torch.cat([teacher.sample(some, rng) for some in prompts.split(PER_PASS)])
        torch.save({"latents": latents, "prompts": prompts}, path)
    made = torch.load(path, weights_only=True)
    return made["latents"], made["prompts"]


def pair(teacher, clean, texts, s):
    """(x, velocity) at flow levels s [N] in (0, 1] of latents around clean, as the teacher has it.

    Above the teacher's last sigma its x0 is taken there, and x is that latent with more noise: the mean of
    these x0 over all latents that x can come from is the x0 of x.
    """
    s = s[:, None, None, None]
    sigma = (s / (1 - s)).clamp(max=float(teacher.sigmas[-1]))
    latent = clean + sigma * torch.randn_like(clean)
    x0 = latent - sigma * teacher.eps(latent, sigma.flatten(), texts)
    more = (s.square() - ((1 - s) * sigma).square()).clamp_min(0).sqrt()
    x = (1 - s) * latent + more * torch.randn_like(clean)
    return x, (x - x0) / s


def train_flow(work, minutes, batch=32, lr=3e-4):
    """Mean squared error of the velocity at uniform levels, 10% of prompts empty."""
    teacher = Teacher()
    latents, prompts = teacher_samples(work, teacher)
    unet = unet_of(teacher.weights)

    def loss_of(rng):
        chosen = torch.randint(len(latents), (batch,))
        words = torch.where(torch.rand(batch) < 0.1, len(PROMPTS), prompts[chosen])
        s = 1 - torch.rand(batch)
        with torch.no_grad():
            x, velocity = pair(teacher, latents[chosen], teacher.texts[words], s)
        with sdpa_kernel(SDPBackend.MATH):  # whose backward pass is the faster one on a CPU
            out = unet(x.to(memory_format=torch.channels_last), 1000 * s, teacher.texts[words])
        return (out.float() - velocity).square().mean()

    steps = train(work, "flow", [unet], loss_of, minutes, lr=lr, ema=0.998)
    torch.save(unet.state_dict(), work / "flow.pt")
    save_report(work, flow_steps=steps, flow_batch=batch)


def pack(work, largest=3):
    """What the flow UNet's weights differ by from the shipped ones (see expand_model.py)."""
    base, flow = Teacher().weights, torch.load(work / "flow.pt", weights_only=True)
    difference = {f"{UNET}{name}": weight - base[name] for name, weight in flow.items()}
    data = lzma.compress(save(compacted(difference, largest)), preset=6)
    FLOW.write_bytes(data)
    print(f"{len(data) / 1e6:.1f} MB")


def main():
    arguments = stage_wanted(__doc__, ["train", "pack"], minutes=40)
    if arguments.stage == "train":
        train_flow(arguments.work, arguments.minutes)
    elif arguments.stage == "pack":
        pack(arguments.work)


if __name__ == "__main__":
    main()
