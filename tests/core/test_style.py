"""The code is as the linter, the formatter and the type checker want it, and short enough to read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines


@pytest.mark.parametrize("command", ["ruff check --no-cache .", "ruff format --check --no-cache .", "mypy"])
def test_a_checker_has_nothing_to_say(command):
    run = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def sources(*endings):
    """{path from the root: text} of the project's files. Folders with a dot hold what others wrote."""
    inside = [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    files = [file for path in inside for file in (path.rglob("*") if path.is_dir() else [path])]
    return {
        file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
        for file in files
        if file.suffix in endings
    }


def test_no_file_is_longer_than_can_be_read_in_one_sitting():
    lengths = {path: len(text.splitlines()) for path, text in sources(".py", ".js").items()}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_function_is_longer_than_a_screen():
    lengths = {
        f"{path}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path, text in sources(".py").items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}
