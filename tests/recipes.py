"""The recipes of docs/architecture.md: each piece of code, put where its line says."""

import re
import shutil

from tools.host import ROOT

PAGE = ROOT / "docs" / "architecture.md"
PIECE = re.compile(
    r"^In `(?P<path>[^`]+)`(?:, (?P<where>before|after|replacing) `(?P<mark>[^`]+)`)?:\n\n"
    r"```\w+\n(?P<code>.*?)```$",
    re.MULTILINE | re.DOTALL,
)
PARTS = ("__init__.py", "d3po_core", "nodes", "web")


def cook(folder, part, *titles):
    """Copy the pack's parts (all, or one) into the folder, with the recipes of these titles followed."""
    for name in [part] if part else PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, folder / name)
    for title in titles:
        pieces = list(PIECE.finditer(section(title)))
        assert pieces, f"the recipe {title!r} has no code"
        for piece in pieces:
            if part is None or piece["path"].startswith(part):
                put(folder / piece["path"], piece["where"], piece["mark"], piece["code"])


def titles():
    return re.findall(r"^## (.+)$", PAGE.read_text("utf-8"), re.MULTILINE)


def section(title):
    return re.split(r"^## ", PAGE.read_text("utf-8").split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def put(file, where, mark, code):
    """Write the code at the file's end, at the one line that begins with the mark, or in the mark's place."""
    text = file.read_text("utf-8") if file.exists() else ""
    if where is None:
        text = f"{text}\n\n{code}" if text else code
    elif where == "replacing":
        assert text.count(mark) == 1, f"{mark!r} is not in {file.name} once"
        text = text.replace(mark, code.rstrip("\n"))
    else:
        lines = text.splitlines(keepends=True)
        found = [i for i, line in enumerate(lines) if line.startswith(mark)]
        assert len(found) == 1, f"{len(found)} lines of {file.name} begin with {mark!r}"
        lines.insert(found[0] + (where == "after"), code)
        text = "".join(lines)
    file.write_text(text, "utf-8")
