"""Files that a node's input names: told from other choices, and counted by their content."""

import functools
import hashlib
import os

import folder_paths

WHOLE = 64 * 2**20  # bytes; of a larger file only parts are read
PARTS, PART = 64, 2**18


def content_of(value, kind, options):
    """A name of the content of the file that a choice stands for, on every machine alike; None for another
    choice, or for a file that is not there."""
    choices = kind if isinstance(kind, (list, tuple)) else options.get("options") if kind == "COMBO" else None
    if choices is None or not isinstance(value, str):
        return None
    path = _model_file(value, choices) or _input_file(value, choices, options)
    return file_content(path) if path else None


def _model_file(value, choices):
    """The path where the choices are the files of one of the host's model folders, perhaps with others
    besides."""
    if value not in choices:
        return None
    for category in folder_paths.folder_names_and_paths:
        path = folder_paths.get_full_path(
            category, value
        )  # first, as some folders, such as custom_nodes, take long to list
        if path and set(folder_paths.get_filename_list(category)) <= set(choices):
            return path
    return None


def _input_file(value, choices, options):
    """The path where the choices are files of the input folder, or may be put there. value may end with
    [output] or [temp]."""
    if not folder_paths.exists_annotated_filepath(value):
        return None
    path = folder_paths.get_annotated_filepath(value)
    uploaded = any(name.endswith("_upload") and allowed for name, allowed in options.items())
    listed = value in choices and all(map(folder_paths.exists_annotated_filepath, choices))
    return path if os.path.isfile(path) and (uploaded or listed) else None


def file_content(path):
    """A name of a file's content; of one above WHOLE bytes by its size and parts spread over it."""
    try:
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
