"""Train the small emoji text-to-image model that the demo and the tests use, from nothing, on a CPU.

The result is a checkpoint in SD1.5's layout that ComfyUI's stock loader takes: a 26 M UNet on 8x8 latents, a
TAESD autoencoder, and a CLIP-L whose layers are the identity. It learns the pictures of model_pictures.py.
Every stage saves as it goes and resumes where it stopped:

    python -m tools.make_model COMFYUI WORK autoencoder --minutes 15
    python -m tools.make_model COMFYUI WORK unet --minutes 90
    python -m tools.make_model COMFYUI WORK pack

COMFYUI is a ComfyUI checkout: its UNet, TAESD and tokenizer are used. WORK is a folder for data and training
state.
"""

import argparse
import json
import lzma
import math
import random
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save

from tools.expand_model import quantise
from tools.model_pictures import COLOURS, OBJECTS, caption, compose, random_labels, sprites

MODEL_DIR = Path(__file__).resolve().parent.parent / "model"
LATENT = 8
UNET = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=320,
    num_res_blocks=[1],
    channel_mult=[1],
    transformer_depth=[1],
    transformer_depth_middle=1,
    transformer_depth_output=[1, 1],
    num_heads=8,
    use_spatial_transformer=True,
    context_dim=768,
    legacy=False,
)


def initialise(module):
    """The host's layers skip their initialisation (they expect weights from a file): do it here."""
    for m in module.modules():
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_uniform_(m.weight, a=math.sqrt(5))
            if m.bias is not None:
                torch.nn.init.zeros_(m.bias)
        elif isinstance(m, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            torch.nn.init.ones_(m.weight)
            torch.nn.init.zeros_(m.bias)
    return module


def train(work, name, modules, loss_of, minutes, lr, seed=0, ema=0.0):
    """AdamW with warm-up and cosine over a budget of minutes, in bfloat16 autocast.

    It saves every minute and resumes if it was stopped. `loss_of(rng)` draws its own batch. Leaves the (EMA)
    weights in `modules`. Returns the number of steps."""
    path = work / f"{name}.train.pt"
    parameters = [p for m in modules for p in m.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2, betas=(0.9, 0.99))
    average = [p.detach().clone() for p in parameters]
    step, used = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        step, used = state["step"], state["used"]
        optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
        for p, saved in zip(parameters, state["parameters"]):
            p.data.copy_(saved)
    rng = random.Random(seed * 1_000_003 + step)
    torch.manual_seed(seed * 1_000_003 + step)
    began, saved_at, running = time.monotonic() - used, time.monotonic(), None
    while (used := time.monotonic() - began) < minutes * 60:
        progress = used / (minutes * 60)
        for group in optimizer.param_groups:
            group["lr"] = (
                lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
            )
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        decay = min(ema, (1 + step) / (10 + step)) if ema else 0.0
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.data for p in parameters], 1 - decay)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if time.monotonic() - saved_at > 60:
            saved_at = time.monotonic()
            print(f"{name} step {step}  {used / 60:.1f}/{minutes} min  loss {running:.4f}", flush=True)
            partial = path.with_suffix(".new")
            torch.save(
                {
                    "step": step,
                    "used": used,
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "parameters": [p.data for p in parameters],
                },
                partial,
            )
            partial.replace(path)
    for p, averaged in zip(parameters, average):
        p.data.copy_(averaged)
    return step


def new_autoencoder():
    from comfy.taesd.taesd import TAESD

    return initialise(TAESD()).to(memory_format=torch.channels_last)


def train_autoencoder(work, minutes, batch=10):
    """TAESD from nothing.

    The latents are pulled to unit variance and noised a little, so that the decoder is smooth where the
    diffusion model will land."""
    sprite_set, model = sprites(work), new_autoencoder()

    def loss_of(rng):
        images = compose(sprite_set, *random_labels(batch, rng), rng).to(memory_format=torch.channels_last)
        latent = model.taesd_encoder(images)
        noisy = latent + 0.08 * torch.randn_like(latent)
        out = model.taesd_decoder(noisy).float()
        latent = latent.float()
        mean, var = latent.mean((0, 2, 3)), latent.var((0, 2, 3))
        edges = sum(F.l1_loss(out.diff(dim=d), images.diff(dim=d)) for d in (2, 3))
        unit = (mean.square() + var - var.clamp_min(1e-6).log() - 1).mean()
        return F.l1_loss(out, images) + 4 * F.mse_loss(out, images) + edges + 0.01 * unit

    train(work, "autoencoder", [model], loss_of, minutes, lr=1e-3, ema=0.998)
    rng = random.Random(1)
    with torch.no_grad():
        images = compose(sprite_set, *random_labels(512, rng), rng)
        latent = model.taesd_encoder(images)
        psnr = (
            -10 * (model.taesd_decoder(latent).clamp(0, 1) - images).square().mean((1, 2, 3)).log10().mean()
        )
        # the host multiplies latents by 0.18215 on their way to the UNet, which wants unit variance
        model.vae_scale.data.fill_(latent.std() * 0.18215)
        model.vae_shift.data.fill_(-latent.mean() / model.vae_scale)
    torch.save(model.state_dict(), work / "autoencoder.pt")
    save_report(work, autoencoder_psnr_db=round(psnr.item(), 2))


class Text(torch.nn.Module):
    """Token plus position embedding and a final norm: what CLIP-L is when all its layers are the identity."""

    def __init__(self, tokens):
        super().__init__()
        self.index = {t: i for i, t in enumerate(tokens)}
        self.token = torch.nn.Parameter(torch.randn(len(tokens), 768) * 0.5)
        self.position = torch.nn.Parameter(torch.randn(77, 768) * 0.1)
        self.norm = torch.nn.LayerNorm(768)

    def forward(self, ids):
        rows = torch.tensor([[self.index[t] for t in row] for row in ids])
        return self.norm(self.token[rows] + self.position)


def tokenize(text):
    from comfy.sd1_clip import SD1Tokenizer

    if not hasattr(tokenize, "tokenizer"):
        tokenize.tokenizer = SD1Tokenizer()
    return [t for t, _ in tokenize.tokenizer.tokenize_with_weights(text)["l"][0]]


def new_unet():
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = initialise(UNetModel(**UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init))
    for m in unet.modules():  # every residual branch and the output start at zero
        for name in ("out_layers", "proj_out"):
            layer = getattr(m, name, None)
            if layer is not None:
                torch.nn.init.zeros_((layer[-1] if name == "out_layers" else layer).weight)
    torch.nn.init.zeros_(unet.out[-1].weight)
    return unet.to(memory_format=torch.channels_last)


def convolve_by_product(unet):
    """Compute 3x3 convolutions as matrix products while training.

    On a CPU in bfloat16 their backward pass is several times faster so."""

    def forward(conv, x):
        height, width = x.shape[-2:]
        padded = F.pad(x.movedim(1, -1).to(torch.bfloat16), (0, 0, 1, 1, 1, 1))
        patches = torch.cat(
            [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], -1
        )
        weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2).to(torch.bfloat16)
        return (patches @ weight + conv.bias.to(torch.bfloat16)).movedim(-1, 1)

    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.forward = partial(forward, module)


def alphas_cumprod():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def encode_dataset(work, count=24576):
    path = work / "latents.pt"
    if not path.exists():
        model = new_autoencoder()
        model.load_state_dict(torch.load(work / "autoencoder.pt", weights_only=True))
        sprite_set, rng = sprites(work), random.Random(2)
        latents, labels = [], []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for _ in range(count // 256):
                objects, colours = random_labels(256, rng)
                images = compose(sprite_set, objects, colours, rng).to(memory_format=torch.channels_last)
                latents.append(model.encode(images * 2 - 1).float() * 0.18215)
                labels += list(zip(objects, colours))
        torch.save({"latents": torch.cat(latents), "labels": labels}, path)
    data = torch.load(path, weights_only=True)
    return data["latents"], data["labels"]


def text_modules():
    prompts = {(i, c): tokenize(caption(n, c)) for i, n in enumerate(OBJECTS) for c in COLOURS}
    prompts[None] = tokenize("")
    return prompts, Text(sorted({t for row in prompts.values() for t in row}))


def train_unet(work, minutes, batch=24):
    """Epsilon prediction on SD1.5's schedule, min-SNR weighting (arXiv 2303.09556), 10% caption dropout."""
    latents, labels = encode_dataset(work)
    torch.manual_seed(0)
    unet, (prompts, text), abar = new_unet(), text_modules(), alphas_cumprod()
    snr = abar / (1 - abar)
    convolve_by_product(unet)

    def loss_of(rng):
        pick = torch.tensor([rng.randrange(len(labels)) for _ in range(batch)])
        ids = [prompts[None if rng.random() < 0.1 else tuple(labels[i])] for i in pick.tolist()]
        x0, t, noise = latents[pick], torch.randint(0, 1000, (batch,)), torch.randn(batch, 4, LATENT, LATENT)
        a = abar[t][:, None, None, None]
        out = unet(
            (a.sqrt() * x0 + (1 - a).sqrt() * noise).to(memory_format=torch.channels_last), t, text(ids)
        )
        weight = snr[t].clamp(max=5) / snr[t]
        return ((out.float() - noise).square().mean((1, 2, 3)) * weight).mean()

    steps = train(work, "unet", [unet, text], loss_of, minutes, lr=6e-4, ema=0.999)
    torch.save(
        {"unet": unet.state_dict(), "text": text.state_dict(), "tokens": list(text.index)}, work / "unet.pt"
    )
    save_report(work, unet_steps=steps, unet_batch=batch)


def compacted(weights, largest=127):
    """Weights by name, of which the large ones are integers (see expand_model.py)."""
    compact = {}
    for name, weight in weights.items():
        if weight.ndim > 1 and weight.numel() > 10000:
            compact[f"{name}.int8"], compact[f"{name}.scale"] = quantise(weight, largest)
        else:
            compact[name] = weight.half()
    return {name: tensor.contiguous() for name, tensor in compact.items()}


def pack(work):
    """Both networks and the word embeddings, small enough to ship (see expand_model.py)."""
    state = torch.load(work / "unet.pt", weights_only=True)
    autoencoder = torch.load(work / "autoencoder.pt", weights_only=True)
    compact = {"text.tokens": torch.tensor(state["tokens"], dtype=torch.int32)}
    compact |= {f"text.{k}": v.half() for k, v in state["text"].items()}
    compact |= compacted({f"model.diffusion_model.{k}": v for k, v in state["unet"].items()})
    compact |= {f"first_stage_model.{k}": v.half() for k, v in autoencoder.items()}
    data = lzma.compress(save({k: v.contiguous() for k, v in compact.items()}), preset=6)
    (MODEL_DIR / "emoji.safetensors.xz").write_bytes(data)
    print(f"{len(data) / 1e6:.1f} MB")


def save_report(work, **figures):
    path = work / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(report | figures, indent=2))
    print(figures)


def stage_wanted(about, stages, minutes):
    """The command line's arguments, with ComfyUI ready to be imported and the folder of the work made."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--minutes", type=float, default=minutes)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(arguments.comfyui))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True
    return arguments


def main():
    arguments = stage_wanted(__doc__, ["autoencoder", "unet", "pack"], minutes=15)
    if arguments.stage == "autoencoder":
        train_autoencoder(arguments.work, arguments.minutes)
    elif arguments.stage == "unet":
        train_unet(arguments.work, arguments.minutes)
    elif arguments.stage == "pack":
        pack(arguments.work)


if __name__ == "__main__":
    main()
