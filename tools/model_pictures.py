"""The captioned pictures that the small emoji model learns: an object on a ground of one colour, 64x64."""

import colorsys
import random
import subprocess
import sys
import tarfile

import numpy as np
import torch
from PIL import Image

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
# Hue, saturation range, value range. A colour word covers many shades: a preference can choose among them.
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
SIZE = 64


def caption(name, colour):
    return f"{article(name)} {name} on {article(colour)} {colour} background"


def article(word):
    return "an" if word[0] in "aeiou" else "a"


def shade(colour, rng):
    hue, saturation, value = COLOURS[colour]
    return colorsys.hsv_to_rgb(
        (hue + rng.uniform(-0.02, 0.02)) % 1, rng.uniform(*saturation), rng.uniform(*value)
    )


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
