"""What ComfyUI's registry and its manager read of the pack."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()
NEEDED = {
    "__init__.py", "nodes", "d3po_core", "web", "example_workflows", "pyproject.toml", "requirements.txt",
    "README.md", "LICENSE", "CHANGELOG.md",
}  # fmt: skip


def lines(name):
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def test_the_manager_installs_what_the_project_depends_on():
    (listed,) = re.findall(r"^dependencies = \[(.*)\]$", PROJECT, re.MULTILINE)
    assert lines("requirements.txt") == re.findall(r'"(.*?)"', listed)


def test_the_registrys_name_has_no_comfyui_in_it():
    (name,) = re.findall(r'^name = "(.*)"$', PROJECT, re.MULTILINE)
    assert re.fullmatch("[a-z][a-z0-9-]*", name) and "comfyui" not in name


def test_what_is_left_out_of_the_published_pack_exists_and_is_not_needed():
    left_out = [line.rstrip("/") for line in lines(".comfyignore")]
    assert all((ROOT / name).exists() for name in left_out)
    assert not {name.split("/")[0] for name in left_out} & NEEDED
    assert {"tests", "tools", "model"} <= set(left_out)
