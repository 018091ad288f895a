"""Sample files of outside formats, made as the formats' own descriptions have them, not by our writers."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (4, 3, 3), np.uint8)


def encoded(seed, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(picture(seed)).save(buffer, kind, **options)
    return buffer.getvalue()


def save(folder, *names):
    """Images of these names; the seed of each is its place."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(path)
    return folder


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((text if isinstance(text, str) else json.dumps(text)).encode(encoding))
    return path


def parquet(path, **cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(cells), path)
    return path


def seeds(record):
    """Which of our pictures the images of a record are."""
    known = {picture(seed).tobytes(): seed for seed in range(30)}
    return [
        known[(record.load(i) * 255).round().astype(np.uint8).tobytes()] for i in range(len(record.images))
    ]


def outcomes(records):
    """Each strict pair as (prompt, winner's picture, loser's picture)."""
    return [
        (record.prompt, seeds(record)[w], seeds(record)[l]) for record in records for w, l in record.pairs
    ]
