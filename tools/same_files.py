"""What is on disk and what the routes answer, as hashes that do not depend on when they were made."""

import hashlib
import json
import re
import sqlite3
from collections import defaultdict

from safetensors import safe_open
from safetensors.torch import load_file

MOMENTS = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*([+-]\d\d:\d\d|Z)?"), "TIME"),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UUID"),
    (re.compile(r'"(time|seconds|began|saved_at|created)": ?[\d.]+'), r'"\1": TIME'),
    (re.compile(r"-[0-9a-f]{8}(?=\.(png|safetensors))"), ""),
    (re.compile(r"ComfyUI_temp_[a-z]+_"), "ComfyUI_temp_"),
    (re.compile(r"[\d.]+ (s|min) a step|in [\d.]+ (s|min)"), "DURATION"),
)


def without_moments(text):
    """The text without its dates, durations and random names."""
    for pattern, stand_in in MOMENTS:
        text = pattern.sub(stand_in, text)
    return text


def digest_of(text):
    """A hash of a text without its moments."""
    return hashlib.sha256(without_moments(text).encode()).hexdigest()[:16]


def tensors_of(path):
    """A hash of a file's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(
            f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return digest_of(json.dumps(file.metadata(), sort_keys=True))


def rows_of(path):
    connection = sqlite3.connect(path)
    try:
        return digest_of("\n".join(connection.iterdump()))
    finally:
        connection.close()


def files_in(folder):
    """(path in the folder, hash) of each of its files; all hashes of those that differ by a random name."""
    found = defaultdict(list)
    for path in (file for file in folder.rglob("*") if file.is_file()):
        if path.suffix == ".safetensors":
            value = f"{tensors_of(path)} {metadata_of(path)}"
        elif path.suffix == ".sqlite":
            value = rows_of(path)
        else:
            value = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        found[without_moments(path.relative_to(folder).as_posix())].append(value)
    return [(name, " ".join(sorted(values))) for name, values in sorted(found.items())]
