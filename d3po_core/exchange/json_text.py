"""JSON arrays, one item at a time, so that a file of a hundred thousand entries is never held whole."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .files import open_text
from .record import ExchangeError

CHUNK = 1 << 16
DECODER = json.JSONDecoder()
BLANKS = re.compile(r"[ \t\r\n]*")
SEPARATOR = re.compile(r"[ \t\r\n]*[,\]]")


class NotAList(ExchangeError):
    """JSON, but no array."""


def items(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """(line, item) for each item of a JSON array. ExchangeError, naming file and line, where it is none."""
    with open_text(path, name) as file:
        text, at, line, ended = "", 0, 1, False
        state = "begin"
        while True:
            blanks = BLANKS.match(text, at)
            start = blanks.end() if blanks else at
            line, at = line + text.count("\n", at, start), start
            mark = text[at : at + 1]
            complete = bool(mark) or ended
            if not complete:
                pass
            elif state == "begin":
                if mark != "[":
                    raise NotAList(f"{name}, line {line}: expected a JSON list, beginning with [")
                at, state = at + 1, "first item"
            elif mark == "]" and state in ("first item", "after an item"):
                return
            elif state == "after an item":
                if mark != ",":
                    raise ExchangeError(f"{name}, line {line}: expected a comma or ]; the file is damaged")
                at, state = at + 1, "item"
            else:
                try:
                    item, end = DECODER.raw_decode(text, at)
                    # A number may go on where what is read so far ends: 1 of 1.5 is a number too.
                    complete = bool(SEPARATOR.match(text, end)) or ended
                except json.JSONDecodeError as error:
                    if ended:
                        line += text.count("\n", at, error.pos)
                        raise ExchangeError(
                            f"{name}, line {line}: {error.msg}; the file is damaged or cut off"
                        ) from error
                    complete = False
                except (ValueError, RecursionError) as error:
                    raise ExchangeError(f"{name}, line {line}: {error}") from error
                if complete:
                    yield line, item
                    line, at, state = line + text.count("\n", at, end), end, "after an item"
            if not complete:
                # As much again as is waiting, so that a long item is not parsed over and over.
                more = file.read(max(CHUNK, len(text) - at))
                text, at, ended = text[at:] + more, 0, not more


def first(path: Path, name: str) -> Any:
    """The first item of a JSON array; None where there is none."""
    try:
        return next((item for _, item in items(path, name)), None)
    except NotAList:
        return None


@contextlib.contextmanager
def writing(file: IO[str]) -> Iterator[Callable[[object], None]]:
    """Write a JSON array, each item on its line: `with writing(file) as append`."""
    separator = "[\n"

    def append(item: object) -> None:
        nonlocal separator
        file.write(separator + json.dumps(item, ensure_ascii=False))
        separator = ",\n"

    yield append
    file.write("[]\n" if separator == "[\n" else "\n]\n")
