"""Measure the emoji checkpoint through ComfyUI's stock nodes and write its sheet and figures:

    python -m tools.model_card COMFYUI WORK

COMFYUI and WORK as in make_model.py. Needs the expanded checkpoint, which any command of dev.py makes.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tools import model_pictures
from tools.host import BASE, Host, make_base
from tools.make_model import MODEL_DIR
from tools.sheet import as_batch
from tools.stock import stock_images

BORDER = 4  # pixels at the edge that no object touches often


def background_of(images):
    """Median colour of the border, [N, 3], of images [N, 3, H, W]."""
    inner = torch.zeros(images.shape[-2:], dtype=torch.bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    return images[:, :, ~inner].median(-1).values


def name_background(colours, rng):
    """Nearest colour word by the nearest of many shades of each."""
    shades = torch.tensor(
        [[model_pictures.shade(name, rng) for _ in range(300)] for name in model_pictures.COLOURS]
    )
    distance = (colours[:, None, None] - shades[None]).square().sum(-1).amin(-1)
    return distance.argmin(1)


def name_object(images, sprites):
    """Nearest neighbour in pixels among every object at many sizes and places, on the image's background."""
    library = sprites.flatten(0, 1).float() / 255
    found = []
    for image, background in zip(images, background_of(images)):
        pictures = library[:, :3] + background[:, None, None] * (1 - library[:, 3:])
        nearest = (pictures - image).square().sum((1, 2, 3)).argmin()
        found.append(int(nearest) // sprites.shape[1])
    return torch.tensor(found)


def interval(hits):
    """Share and its 95% confidence interval (Wilson)."""
    n, p, z = len(hits), float(np.mean(hits)), 1.96
    centre, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5 / (1 + z * z / n),
    )
    return f"{p:.3f} [{centre - half:.3f}, {centre + half:.3f}]"


def draw(images, path, quality=92):
    """256 images on a sheet."""
    sheet = Image.new("RGB", (16 * 66, 16 * 66), "white")
    for i, image in enumerate(images):
        sheet.paste(image.convert("RGB"), (i % 16 * 66 + 1, i // 16 * 66 + 1))
    sheet.save(path, quality=quality)


def main():
    work = Path(sys.argv[2])
    names, colours = list(model_pictures.OBJECTS), list(model_pictures.COLOURS)
    labels = [(o, c) for o in range(len(names)) for c in range(len(colours))]
    texts = [model_pictures.caption(names[o], colours[c]) for o, c in labels]
    with Host(make_base(BASE)) as host:
        images = stock_images(host, texts, range(len(texts)), steps=20, cfg=2.0)
    pixels = torch.from_numpy(as_batch(images)).float().movedim(-1, 1)
    rng = random.Random(3)
    truth = torch.tensor(labels)
    right_object = (name_object(pixels, model_pictures.sprites(work)) == truth[:, 0]).numpy()
    right_background = (name_background(background_of(pixels), rng) == truth[:, 1]).numpy()
    report = json.loads((work / "report.json").read_text())
    report |= {
        "object accuracy": interval(right_object),
        "background accuracy": interval(right_background),
        "objects right on at least 6 of 8 backgrounds": int(
            (right_object.reshape(len(names), -1).sum(1) >= 6).sum()
        ),
    }
    print(json.dumps(report, indent=2))
    per_object = right_object.reshape(len(names), -1).mean(1)
    print({name: round(float(share), 2) for name, share in zip(names, per_object)})
    draw(images, MODEL_DIR / "samples.jpg")


if __name__ == "__main__":
    main()
