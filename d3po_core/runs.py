"""A named run on disk: its LoRA, optimizer and step in one safetensors file that is replaced as a whole."""

import json
import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = "d3po.run/1"
STATE = "run.safetensors"


def run_folder(root, name):
    """Folder of a run. Raises ValueError for a name that could lie outside `root` or not be a folder everywhere."""
    reserved = name.split(".")[0].upper() in {"CON", "PRN", "AUX", "NUL", *(f"{d}{i}" for d in ("COM", "LPT") for i in range(10))}
    if reserved or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,99}(?<![. ])", name):
        raise ValueError(f"run: {name!r} cannot name a folder; use letters, digits, spaces, '-' and '_'")
    return Path(root) / name


def save_run(folder, tensors, record):
    """Write a run's state, all of it or nothing: {name: tensor} and a JSON record with at least "step"."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_whole(folder / STATE, lambda path: save_file(
        {k: v.contiguous() for k, v in tensors.items()}, path,
        metadata={"d3po": json.dumps({"format": FORMAT} | record)}))


def load_run(folder):
    """(tensors, record) of a run, or None where there is none yet. Raises ValueError, naming the file, if it is not
    whole or not a run."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["d3po"])
            if record["format"] != FORMAT:
                raise KeyError(record["format"])
            return {name: file.get_tensor(name) for name in file.keys()}, record
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a run of this pack, or is damaged ({error}). It was left as it is: give this "
                         "run another name, or move the file away") from error


def run_version(folder):
    """Changes whenever the run on disk does."""
    path = folder / STATE
    return path.stat().st_mtime_ns if path.exists() else 0


def replace_whole(path, write):
    """write(temporary path), then put it in the place of `path` in one step."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
