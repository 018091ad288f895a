"""Files that a node's input names: told from other choices, and counted by their content."""

import functools
import hashlib
import os
from typing import NamedTuple

import folder_paths

WHOLE = 64 * 2**20  # bytes; of a larger file only parts are read
PARTS, PART = 64, 2**18
LORAS = "loras"  # what is loaded of these a MODEL tells by itself

_first = {}  # a file of weights -> its content when it was first asked for


class File(NamedTuple):
    """A file that an input names, by its content, on every machine alike. written_over: whether it holds
    other weights than when it was first asked for, so that the host may still have those loaded."""

    content: str
    written_over: bool = False


def file_of(value, kind, options):
    """The File, or folder, that an input's value stands for; None for another value, or where there is
    none."""
    if not isinstance(value, str):
        return None
    choices = kind if isinstance(kind, (list, tuple)) else options.get("options") if kind == "COMBO" else None
    path, category = _model_file(value, choices or ())
    path = path or _input_file(value, choices, options)
    content = path and content_of(path)
    if content is None:
        return None
    return File(content, category not in (None, LORAS) and _first.setdefault(path, content) != content)


def _model_file(value, choices):
    """(path, category) where the choices are the files of one of the host's model folders, perhaps with
    others besides; else (None, None)."""
    for category in folder_paths.folder_names_and_paths if value in choices else ():
        path = folder_paths.get_full_path(
            category, value
        )  # first, as some folders, such as custom_nodes, take long to list
        if path and set(folder_paths.get_filename_list(category)) <= set(choices):
            return path, category
    return None, None


def _input_file(value, choices, options):
    """The path where a text names a file of the input folder, or one anywhere by its whole path; of choices
    where all are such files or folders, or may be put there. value may end with [output] or [temp]."""
    if choices is None and os.path.isabs(value):
        return value if os.path.isfile(value) else None
    if not value or not folder_paths.exists_annotated_filepath(value):
        return None
    path = folder_paths.get_annotated_filepath(value)
    uploaded = any(name.endswith("_upload") and allowed for name, allowed in options.items())
    if choices is None or uploaded:
        return path if os.path.isfile(path) else None
    listed = value in choices and all(map(folder_paths.exists_annotated_filepath, choices))
    return path if listed else None


def content_of(path):
    """A name of a file's content; of one above WHOLE bytes by its size and parts spread over it. Of a folder
    by the names and contents of what is in it."""
    try:
        if os.path.isdir(path):
            inside = [f"{name} {content_of(os.path.join(path, name))}\n" for name in sorted(os.listdir(path))]
            return hashlib.sha256("".join(inside).encode(errors="surrogateescape")).hexdigest()
        state = os.stat(path)
        return _content(path, state.st_size, state.st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(4096)
def _content(path, size, _):
    with open(path, "rb") as file:
        if size <= WHOLE:
            return hashlib.sha256(file.read()).hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for part in range(PARTS):
            file.seek((size - PART) * part // (PARTS - 1))
            digest.update(file.read(PART))
        return digest.hexdigest()
