"""web/ is as biome (format and lint) and tsc (the types in its comments) want it."""

import json
import os
import re
import subprocess
import sys

import pytest

from tools import web_checks
from tools.environment import WEB_CHECKS
from tools.host import ROOT

MISSING = (
    "biome and tsc are not in .venv. `python dev.py test` fetches them by npm, for which it needs a network"
)
LONGEST_LINE = 110


@pytest.fixture
def packages():
    if not web_checks.are_there(WEB_CHECKS):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    return WEB_CHECKS


def run(name, packages, folder=ROOT):
    return subprocess.run(
        web_checks.command(name, packages, sys.executable), cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", web_checks.COMMANDS)
def test_the_checks_have_nothing_to_say(name, packages):
    done = run(name, packages)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name, line, complaint",
    [
        ("biome", "export const one = 1;", "format"),
        ("biome", "export const same = (a) => a == 1", "noDoubleEquals"),
        ("tsc", "export const twice = (a) => 2 * a", "implicitly has an 'any' type"),
        ("tsc", "/** @type {number} */\nexport const one = 'one'", "not assignable to type 'number'"),
    ],
)
def test_each_check_sees_a_fault(name, line, complaint, packages, tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "fault.js").write_text(line + "\n")
    for config in ("biome.json", "tsconfig.json"):
        (tmp_path / config).write_bytes((ROOT / config).read_bytes())
    done = run(name, packages, tmp_path)
    assert done.returncode != 0 and complaint in done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "web").glob("*.js")), ids=lambda path: path.name)
def test_comments_and_texts_are_short_lines_too(path):
    lines = path.read_text("utf-8").splitlines()
    assert not [number for number, line in enumerate(lines, 1) if len(line) > LONGEST_LINE]


def test_packages_are_fetched_once_a_version_and_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(web_checks, "PACKAGES", tmp_path / "package.json")
    folder, calls = tmp_path / "web_checks", []
    web_checks.PACKAGES.write_text("one version")
    assert not web_checks.are_there(folder)

    def break_off(command):
        raise subprocess.CalledProcessError(1, command)

    with pytest.raises(subprocess.CalledProcessError):
        web_checks.fetch(folder, "python", break_off)
    assert not folder.exists()
    web_checks.fetch(folder, "python", calls.append)
    assert web_checks.are_there(folder) and calls[0][0] == "python" and "--no-package-lock" in calls[0]
    web_checks.PACKAGES.write_text("another version")
    assert not web_checks.are_there(folder)


def test_commits_are_checked_in_the_versions_of_the_tests():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    packages = json.loads(web_checks.PACKAGES.read_text("utf-8"))["devDependencies"]
    (ruff,) = re.findall(r"^ruff==.+$", (ROOT / "requirements-dev.txt").read_text("utf-8"), re.MULTILINE)
    wanted = [ruff, ruff, *(f"{name}@{version}" for name, version in packages.items())]
    assert re.findall(r'additional_dependencies: \["(.+)"\]', hooks) == wanted
