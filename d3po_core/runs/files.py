"""The files of a run: tensors and a JSON record in one safetensors file that is replaced as a whole.

A record may have a "history", the metrics of every update (history.py). In the file it is the tensor HISTORY, and the
record has the names of its columns as "metrics": safetensors takes no more than 100 MB of JSON. Files of before have the
list in their JSON, and are read as well.

The record has a CHECKSUM of itself and all tensors, which is looked at where the whole file is read.
"""

import hashlib
import json
import math
import re
from contextlib import contextmanager, suppress

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import make_folder, replace_whole
from . import history

HISTORY, CHECKSUM = "history", "checksum"
ADAPTER = ("lora.", "raw.", "ema.")  # the weights in a state


class NotOurs(ValueError):
    """A file that is damaged, was written by something else, or by a later version of this pack. It names the file."""


class Unsound(NotOurs):
    """A file that is whole, with numbers in it that no training goes on from."""


def write(path, format, tensors, record):
    """Write a file, all of it or nothing, by who holds the lock of its run's folder (locks.py). Raises OSError, naming
    the file, where that is not possible."""
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


def name_of(value):
    """A name of a JSON value by what is in it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def content_name(tensors):
    """A name of tensors by their bits: the same on every machine, whatever file they come from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def checksum(tensors, record):
    """Of a file's content; a record that has one already counts without it."""
    return name_of(
        [content_name(tensors), {name: value for name, value in record.items() if name != CHECKSUM}]
    )


def unsound(tensors):
    """What there is in a state's tensors that no training goes on from, in words; "" where there is nothing.

    Weights are finite numbers, and so is what an optimizer keeps, in which counters are integers and packed values bytes.
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


def leftovers(folder):
    """Files of a process that was killed while it wrote them, as far as nobody writes now."""
    return [
        path for path in folder.glob("*.partial") if re.fullmatch(r".+\.safetensors\.\w+\.partial", path.name)
    ]


@contextmanager
def named(path):
    """Say of an error in writing a file which one it was and what is left."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path} could not be written ({error}). What was saved there before is as it was. Free some "
            "space on this disk, or allow writing to this folder, then press Run again to go on"
        ) from error


def read(path, format):
    """(tensors, record) of a file of this format or an earlier one. Raises NotOurs, naming the file, for any other, also
    where its content is not what was written; Unsound where it is, and of no use."""
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


def read_record(path, format):
    """As `read`, without the tensors; of the history there is only the last update, in a list of one or none."""
    with _opened(path, format) as (file, record):
        record.pop(CHECKSUM, None)
        if "metrics" in record:
            record[HISTORY] = history.from_table(record.pop("metrics"), file.get_slice(HISTORY)[-1:].numpy())
        elif HISTORY in record:
            record[HISTORY] = record[HISTORY][-1:]
        return record


def read_curves(path, format):
    """The history of a file as `history.curves`, without the other tensors."""
    with _opened(path, format) as (file, record):
        if "metrics" in record:
            return history.curves(record["metrics"], file.get_tensor(HISTORY).clone().numpy())
        return history.curves(*history.to_table(record.get(HISTORY, [])))


@contextmanager
def _opened(path, format):
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
