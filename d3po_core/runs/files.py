"""The files of a run: tensors and a JSON record in one safetensors file that is replaced as a whole.

A record may have a "history", the metrics of every update (history.py). In the file the history is the tensor
HISTORY, and the record has the names of its columns as "metrics": safetensors takes no more than 100 MB of
JSON. Older files have the list in their JSON, and can still be read.

The record has a CHECKSUM of itself and all tensors, which is checked where the whole file is read.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import make_folder, replace_whole
from . import history
from .record import Record, Tensors

HISTORY: Final = "history"
CHECKSUM: Final = "checksum"
ADAPTER = ("lora.", "raw.", "ema.")  # the weights in a state


class NotOurs(ValueError):
    """A file that is damaged, or was written by something else or a later version. It is named."""


class Unsound(NotOurs):
    """A file that is whole, but holds numbers that no training can go on from."""


def write(path: Path, format: str, tensors: Tensors, record: Record) -> None:
    """Write a file, all of it or nothing. The caller holds the lock of the run's folder (locks.py).

    Raises OSError, naming the file, where it cannot be written.
    """
    record = record | {"format": format}
    if HISTORY in record:
        record["metrics"], table = history.to_table(record.pop(HISTORY))
        tensors = tensors | {HISTORY: torch.from_numpy(table)}
    record[CHECKSUM] = checksum(tensors, record)
    with named(path):
        make_folder(path.parent)
        replace_whole(
            path,
            lambda partial: save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                partial,
                metadata={"d3po": json.dumps(record)},
            ),
        )
    for leftover in leftovers(path.parent):
        with suppress(OSError):
            leftover.unlink(missing_ok=True)


def name_of(value: object) -> str:
    """A name of a JSON value by its content."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def content_name(tensors: Mapping[str, Tensor]) -> str:
    """A name of tensors by their bits: the same on every machine, whatever file they come from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def checksum(tensors: Mapping[str, Tensor], record: Record) -> str:
    """The checksum of a file's content. A checksum that the record has already is left out."""
    return name_of(
        [content_name(tensors), {name: value for name, value in record.items() if name != CHECKSUM}]
    )


def unsound(tensors: Mapping[str, Tensor]) -> str:
    """What is in a state's tensors that no training can go on from, in words; "" where there is nothing.

    Weights must be finite, and so must the optimizer's state, in which counters are integers and packed
    values bytes.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            if name.startswith(ADAPTER) or not (tensor.dtype == torch.uint8 or tensor.numel() == 1):
                return (
                    f"{name} holds {str(tensor.dtype).removeprefix('torch.')} where there should be fractions"
                )
        elif name != HISTORY and tensor.numel() and not all(map(math.isfinite, map(float, tensor.aminmax()))):
            return f"{name} is not finite"
    return ""


def leftovers(folder: Path) -> list[Path]:
    """Files of a process that was killed while it wrote them, provided that nobody writes now."""
    return [
        path
        for path in folder.glob("*.partial")
        if re.fullmatch(r".+\.(safetensors|png|json)\.\w+\.partial", path.name)
    ]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn an error in writing a file into one that names it and says what is left."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path} could not be written ({error}). What was saved there before is as it was. Free some "
            "space on this disk, or allow writing to this folder, then press Run again to go on"
        ) from error


def read(path: Path, format: str) -> tuple[Tensors, Record]:
    """(tensors, record) of a file of this format or an earlier version of it.

    Raises NotOurs, naming the file, for any other file, and where the content is not what was written. Raises
    Unsound where it is what was written, but no training can go on from it.
    """
    with _opened(path, format) as (file, record):
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # a view keeps the file open
        written = record.pop(CHECKSUM, None)
        if written and written != checksum(tensors, record):
            raise ValueError("its content is not what was written")
        if "metrics" in record:
            record[HISTORY] = history.from_table(record.pop("metrics"), tensors.pop(HISTORY).numpy())
    if wrong := unsound(tensors):
        raise Unsound(f"{path} cannot be trained on: {wrong}")
    return tensors, record


def read_record(path: Path, format: str) -> Record:
    """Like `read`, without the tensors. Its history has only the last update, in a list of one or none."""
    with _opened(path, format) as (file, record):
        record.pop(CHECKSUM, None)
        if "metrics" in record:
            record[HISTORY] = history.from_table(record.pop("metrics"), file.get_slice(HISTORY)[-1:].numpy())
        elif HISTORY in record:
            record[HISTORY] = record[HISTORY][-1:]
        return record


def read_curves(path: Path, format: str) -> history.Curves:
    """The history of a file as `history.curves`, without the other tensors."""
    with _opened(path, format) as (file, record):
        if "metrics" in record:
            return history.curves(record["metrics"], file.get_tensor(HISTORY).clone().numpy())
        return history.curves(*history.to_table(record.get(HISTORY, [])))


@contextmanager
def _opened(path: Path, format: str) -> Iterator[tuple[safe_open, Record]]:
    kind, newest = format.split("/")
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["d3po"])
            written_by, _, version = record["format"].partition("/")
            if written_by != kind:
                raise KeyError(record["format"])
            record["step"] = int(record["step"])
            newer = int(version) > int(newest)
            if not newer:
                yield file, record
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        what = kind.removeprefix("d3po.")
        raise NotOurs(f"{path} is not a {what} of this pack, or is damaged ({error})") from error
    if newer:
        raise NotOurs(
            f"{path} was written by a newer version of this pack ({record['format']}): update the pack to "
            "use it"
        )
