"""Another frontend beside ComfyUI's own: python dev.py test --frontend 1.58.1"""

import pytest

import dev
from tools import environment, host


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
    assert dev.take_frontend(["tests/web", "--frontend", "1.58.1", "-n", "2"]) == (
        ["tests/web", "-n", "2"],
        "1.58.1",
    )
    assert dev.take_frontend(["tests/core", "-x"]) == (["tests/core", "-x"], None)


@pytest.mark.parametrize("arguments", [["--frontend"], ["--frontend", "-x"], ["--frontend", "../1.58.1"]])
def test_an_option_without_a_version_is_told(arguments):
    with pytest.raises(environment.Problem, match="--frontend needs a version after it"):
        dev.take_frontend(arguments)


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
