import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from d3po_core.runs.tensorboard import Events, tag
from tests.core.children import finish, start
from tests.core.rounds import raise_

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def numbered_from_nought(monkeypatch):
    """Event files of one second are read by their number as text: 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def shown(folder):
    """{tag: [(step, value), ...]} as TensorBoard shows a folder."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def write(folder, start, losses):
    with Events(folder) as events:
        for step, loss in enumerate(losses, start + 1):
            events.write(step, {"loss": loss})


@pytest.mark.parametrize(
    "metric, name",
    [
        ("loss", "train/loss"),
        ("winner log-ratio", "train/winner log-ratio"),
        ("held-out accuracy", "held-out/accuracy"),
        ("margin, noise quarter 1", "margin by noise quarter/1"),
        ("held-out margin, noise quarter 4", "held-out margin by noise quarter/4"),
    ],
)
def test_metrics_have_a_section_and_a_name(metric, name):
    assert tag(metric) == name


def test_every_update_is_read_back(tmp_path):
    with Events(tmp_path / "run" / "events") as events:
        events.write(1, {"loss": 0.5, "margin": -2.0})
        events.write(2, {"loss": 0.25, "margin": math.inf, "held-out accuracy": 0.75})
    assert shown(tmp_path / "run" / "events") == {
        "train/loss": [(1, 0.5), (2, 0.25)],
        "train/margin": [(1, -2.0), (2, math.inf)],
        "held-out/accuracy": [(2, 0.75)],
    }


def test_a_run_that_goes_on_where_it_was_shows_one_curve(tmp_path):
    write(tmp_path, 0, [1.0, 2.0])
    write(tmp_path, 2, [3.0])
    assert shown(tmp_path) == {"train/loss": [(1, 1.0), (2, 2.0), (3, 3.0)]}


@pytest.mark.parametrize("start", [0, 1, 2])
def test_what_was_stopped_or_gone_back_on_is_not_shown_twice(tmp_path, start):
    write(tmp_path, 0, [1.0, 2.0, 3.0])
    write(tmp_path, start, [7.0])
    assert shown(tmp_path) == {"train/loss": [(1, 1.0), (2, 2.0)][:start] + [(start + 1, 7.0)]}


def test_a_figure_measured_after_the_last_update_takes_nothing_away(tmp_path):
    write(tmp_path, 0, [1.0, 2.0])
    with Events(tmp_path) as events:
        events.write(2, {"loss": 2.0, "held-out accuracy": 0.5})
    assert shown(tmp_path) == {"train/loss": [(1, 1.0), (2, 2.0)], "held-out/accuracy": [(2, 0.5)]}


@pytest.mark.parametrize("folder", [None, "events"])
def test_without_a_folder_or_an_update_nothing_is_made(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with Events(folder and tmp_path / folder) as events:
        if folder is None:
            events.write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_without_tensorboard_nothing_is_made_or_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    write(tmp_path / "events", 0, [1.0, 2.0])
    assert list(tmp_path.iterdir()) == [] and not caplog.records


# --- killed, no room ---


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child that starts at once needs fork")
def test_a_killed_process_keeps_what_it_wrote(tmp_path):
    def train(tell):
        events = Events(tmp_path)
        for step in (1, 2, 3):
            events.write(step, {"loss": step / 2})
        tell(b"written\n")
        signal.pause()

    pid, pipe = start(train)
    assert pipe.readline() == b"written\n"
    os.kill(pid, signal.SIGKILL)
    finish(pid, pipe)
    assert shown(tmp_path) == {"train/loss": [(1, 0.5), (2, 1.0), (3, 1.5)]}


def test_a_folder_that_cannot_be_made_is_told_once_and_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with Events(tmp_path / "file" / "events") as events:
        for step in (1, 2, 3):
            events.write(step, {"loss": 1.0})
    (told,) = caplog.records
    assert told.levelno == logging.WARNING and str(tmp_path / "file" / "events") in told.getMessage()
    assert "Training goes on" in told.getMessage()


def test_a_tensorboard_that_does_not_work_is_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        "torch.utils.tensorboard.SummaryWriter", lambda *_, **__: raise_(TypeError("protobuf"))
    )
    write(tmp_path / "events", 0, [1.0, 2.0])
    assert [record.levelno for record in caplog.records] == [logging.WARNING] and "protobuf" in caplog.text


def test_an_interrupt_is_not_held_up(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with Events(tmp_path) as events:
            events.write(1, {"loss": 1.0})
            raise KeyboardInterrupt
    assert shown(tmp_path) == {"train/loss": [(1, 1.0)]}


FULL = """
import resource, signal, sys
from pathlib import Path
from d3po_core.runs.tensorboard import Events
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Events(Path(sys.argv[1])) as events:
    for step in range(1, 201):
        events.write(step, {"loss": 0.5, "margin": 1.0})
print("trained", step)
"""


@pytest.mark.skipif(os.name == "nt", reason="no limit on the size of files there")
def test_a_full_disk_is_told_once_and_what_was_written_before_is_shown(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, text=True, capture_output=True, timeout=120
    )
    assert done.stdout == "trained 200\n", done.stderr
    assert done.stderr.count("could not be written") == 1, done.stderr
    losses = shown(tmp_path)["train/loss"]
    assert 10 < len(losses) < 200 and losses == [(step, 0.5) for step in range(1, len(losses) + 1)]
