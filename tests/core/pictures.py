"""Pictures of noise, and tables that name two of them."""

import io

import numpy as np
from PIL import Image


def picture(seed, size=(5, 4)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def save(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(path, **options)
    return path


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(picture(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def table(folder, *rows):
    """A folder with a.png, b.png and a CSV of these rows."""
    save(folder / "a.png", 1), save(folder / "b.png", 2)
    (folder / "pairs.csv").write_text("prompt,chosen,rejected\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder
