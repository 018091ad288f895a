"""Train the small emoji text-to-image model that the demo and the tests use, from nothing, on a CPU.

The result is a checkpoint in SD1.5's layout that ComfyUI's stock loader takes: a 26 M UNet on 8x8 latents, a TAESD
autoencoder, and a CLIP-L whose layers are the identity. Every stage saves as it goes and resumes where it stopped:

    python -m tools.make_model COMFYUI WORK autoencoder --minutes 15
    python -m tools.make_model COMFYUI WORK unet --minutes 90
    python -m tools.make_model COMFYUI WORK pack

COMFYUI is a ComfyUI checkout (its UNet, TAESD and tokenizer are used), WORK a folder for data and training state.
"""

import argparse
import colorsys
import json
import lzma
import math
import random
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save

from tools.expand_model import quantise

MODEL_DIR = Path(__file__).resolve().parent.parent / "model"
EMOJI_PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
OBJECTS = {
    "apple": "1f34e",
    "banana": "1f34c",
    "strawberry": "1f353",
    "pineapple": "1f34d",
    "watermelon": "1f349",
    "cherries": "1f352",
    "mushroom": "1f344",
    "tulip": "1f337",
    "sunflower": "1f33b",
    "cactus": "1f335",
    "frog": "1f438",
    "pig": "1f437",
    "dog": "1f436",
    "cat": "1f431",
    "panda": "1f43c",
    "fox": "1f98a",
    "lion": "1f981",
    "koala": "1f428",
    "penguin": "1f427",
    "chick": "1f424",
    "fish": "1f41f",
    "ladybug": "1f41e",
    "butterfly": "1f98b",
    "turtle": "1f422",
    "football": "26bd",
    "basketball": "1f3c0",
    "rocket": "1f680",
    "airplane": "2708-fe0f",
    "house": "1f3e0",
    "umbrella": "2602-fe0f",
    "gift": "1f381",
    "heart": "2764-fe0f",
}
# hue, saturation range, value range: a colour word covers many shades, which is what a preference can choose among
COLOURS = {
    "red": (0.0, (0.55, 0.95), (0.45, 0.95)),
    "orange": (0.075, (0.6, 0.95), (0.6, 1.0)),
    "yellow": (0.145, (0.45, 0.9), (0.65, 1.0)),
    "green": (0.34, (0.4, 0.9), (0.35, 0.9)),
    "blue": (0.6, (0.45, 0.9), (0.4, 0.98)),
    "purple": (0.76, (0.4, 0.85), (0.4, 0.9)),
    "pink": (0.92, (0.25, 0.6), (0.75, 1.0)),
    "gray": (0.0, (0.0, 0.03), (0.3, 0.9)),
}
SIZE, LATENT = 64, 8
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


def caption(name, colour):
    return f"{article(name)} {name} on {article(colour)} {colour} background"


def article(word):
    return "an" if word[0] in "aeiou" else "a"


def shade(colour, rng):
    hue, saturation, value = COLOURS[colour]
    return colorsys.hsv_to_rgb(
        (hue + rng.uniform(-0.02, 0.02)) % 1, rng.uniform(*saturation), rng.uniform(*value)
    )


# --- data ---------------------------------------------------------------------------------------------------------


def emoji(work):
    """The 32 renders, cropped to what is not transparent; fetched once as an npm package."""
    folder = work / "emoji"
    if not folder.exists():
        npm = "npm.cmd" if sys.platform == "win32" else "npm"
        archive = subprocess.run(
            [npm, "pack", EMOJI_PACKAGE], cwd=work, check=True, capture_output=True, text=True
        )
        folder.mkdir()
        with tarfile.open(work / archive.stdout.split()[-1]) as tar:
            for name, code in OBJECTS.items():
                (folder / f"{name}.webp").write_bytes(tar.extractfile(f"package/assets/{code}.webp").read())
    images = {}
    for name in OBJECTS:
        image = Image.open(folder / f"{name}.webp").convert("RGBA")
        images[name] = image.crop(image.getchannel("A").getbbox())
    return images


def sprites(work, variants=48, seed=0):
    """Every object at many sizes and places: [32, variants, 4, 64, 64] uint8, premultiplied RGBA."""
    path = work / "sprites.npy"
    if not path.exists():
        rng = random.Random(seed)
        out = np.zeros((len(OBJECTS), variants, 4, SIZE, SIZE), np.uint8)
        for i, image in enumerate(emoji(work).values()):
            for v in range(variants):
                longest = rng.uniform(0.6, 0.9) * SIZE
                scale = longest / max(image.size)
                w, h = (max(1, round(s * scale)) for s in image.size)
                x = (SIZE - w) / 2 + rng.uniform(-1, 1) * min(5, (SIZE - w) / 2)
                y = (SIZE - h) / 2 + rng.uniform(-1, 1) * min(5, (SIZE - h) / 2)
                canvas = Image.new("RGBa", (SIZE, SIZE))
                canvas.paste(image.convert("RGBa").resize((w, h), Image.LANCZOS), (round(x), round(y)))
                out[i, v] = np.asarray(canvas).transpose(2, 0, 1)
        np.save(path, out)
    return torch.from_numpy(np.load(path))


def compose(sprite_set, objects, colours, rng):
    """Images [N, 3, 64, 64] in 0..1 of the given object indices on shades of the given colour names."""
    variant = torch.tensor([rng.randrange(sprite_set.shape[1]) for _ in objects])
    rgba = sprite_set[torch.as_tensor(objects), variant].float() / 255
    background = torch.tensor([shade(c, rng) for c in colours])[:, :, None, None]
    return rgba[:, :3] + background * (1 - rgba[:, 3:])


def random_labels(n, rng):
    return [rng.randrange(len(OBJECTS)) for _ in range(n)], [rng.choice(list(COLOURS)) for _ in range(n)]


# --- training -----------------------------------------------------------------------------------------------------


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
    """AdamW with warm-up and cosine over a budget of minutes, bfloat16 autocast, saved every minute, resumed if it
    was stopped. `loss_of(rng)` draws its own batch. Leaves the (EMA) weights in `modules`."""
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
    """TAESD from nothing. The latents are pulled to unit variance and noised a little, so that the decoder is smooth
    where the diffusion model will land."""
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
    """Compute 3x3 convolutions as matrix products while training: on a CPU in bfloat16 their backward pass is several
    times faster so."""

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


def pack(work):
    """Both networks and the word embeddings, small enough to ship (see expand_model.py)."""
    state = torch.load(work / "unet.pt", weights_only=True)
    whole = {f"model.diffusion_model.{k}": v for k, v in state["unet"].items()}
    whole |= {
        f"first_stage_model.{k}": v for k, v in torch.load(work / "autoencoder.pt", weights_only=True).items()
    }
    compact = {"text.tokens": torch.tensor(state["tokens"], dtype=torch.int32)}
    compact |= {f"text.{k}": v.half() for k, v in state["text"].items()}
    for name, weight in whole.items():
        if name.startswith("model.") and weight.ndim > 1 and weight.numel() > 10000:
            compact[f"{name}.int8"], compact[f"{name}.scale"] = quantise(weight)
        else:
            compact[name] = weight.half()
    data = lzma.compress(save({k: v.contiguous() for k, v in compact.items()}), preset=6)
    (MODEL_DIR / "emoji.safetensors.xz").write_bytes(data)
    print(f"{len(data) / 1e6:.1f} MB")


def save_report(work, **figures):
    path = work / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(report | figures, indent=2))
    print(figures)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("stage", choices=["autoencoder", "unet", "pack"])
    parser.add_argument("--minutes", type=float, default=15)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(arguments.comfyui))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True
    if arguments.stage == "autoencoder":
        train_autoencoder(arguments.work, arguments.minutes)
    elif arguments.stage == "unet":
        train_unet(arguments.work, arguments.minutes)
    elif arguments.stage == "pack":
        pack(arguments.work)


if __name__ == "__main__":
    main()
