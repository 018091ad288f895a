"""What the tests of the nodes ask of the one real ComfyUI."""

import importlib.util
import json
import signal
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d3po_core.dataset.store import Dataset
from tests.host import graphs
from tests.host.answers import Client
from tests.host.graphs import begin, choosing, end_all, live, unique
from tools import run
from tools.host import ROOT, WorkflowError

HERE = Path(__file__).resolve().parent
COLOURS = {
    "red": (220, 40, 40),
    "blue": (40, 60, 220),
    "green": (40, 180, 60),
    "yellow": (230, 210, 60),
    "purple": (150, 60, 200),
    "orange": (240, 140, 40),
}


@pytest.fixture(scope="module")
def source(base):
    """Twelve pairs in ComfyUI's input folder: plain colours, the brighter one preferred."""
    root = base / "input" / unique("colours")
    rng = np.random.default_rng(0)
    for side, shade in {"w": 1.0, "l": 0.45}.items():
        (root / side).mkdir(parents=True)
        for i, (name, colour) in enumerate(list(COLOURS.items()) * 2):
            pixels = np.array(colour) * shade + rng.normal(0, 8, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / side / f"{i:02}.png")
            (root / side / f"{i:02}.txt").write_text(f"a {name} background")
    return root.name


@pytest.fixture
def emoji_model(monkeypatch):
    """A test's graphs load the emoji model, not the one in little."""
    monkeypatch.setattr(graphs, "loader", graphs.emoji)


@pytest.fixture(scope="module")
def emoji_models():
    """So do all of a file's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "loader", graphs.emoji)
        yield


@pytest.fixture
def dataset(base):
    """A new dataset's name; `dataset.open()` looks into it."""

    class Name(str):
        def open(self):
            return Dataset(base / "output" / "d3po" / "datasets" / self, create=False)

    return Name(unique("dataset"))


@pytest.fixture
def run_file(base):
    """The file of a run by its name."""
    return lambda name: base / "output" / "d3po" / "runs" / name / "run.safetensors"


@pytest.fixture
def lora_file(base):
    """The LoRA file that Save Run keeps beside a run."""
    return lambda name: base / "output" / "loras" / "d3po" / f"{name}.safetensors"


@pytest.fixture
def failure(host):
    """The error that a prompt ends with."""

    def of(prompt):
        with pytest.raises(WorkflowError) as caught:
            host.run(prompt)
        return caught.value

    return of


@pytest.fixture
def snapshot():
    return json.loads((HERE / "interface.json").read_text("utf-8"))


@pytest.fixture
def waiting(host):
    """A node that waits for the picks of three sets of four candidates."""
    return begin(host, choosing(sets=3, when_missing="wait"))


@pytest.fixture
def client(host):
    client = Client(host)
    yield client
    client.connection.close()


@pytest.fixture
def nothing_is_left_waiting(host):
    yield
    left = live(host)
    end_all(host)
    assert not left


@pytest.fixture
def routes(monkeypatch):
    """nodes/routes.py with a stand-in for ComfyUI's server: its queue's history can hold anything."""

    class Queue:
        def __init__(self):
            self.mutex, self.history = threading.Lock(), {}

        def get_history(self, prompt_id=None, max_items=None, offset=-1, map_function=None):
            with self.mutex:
                return {name: map_function(run) for name, run in self.history.items()}

    table = types.SimpleNamespace(
        get=lambda path: lambda handler: handler, post=lambda path: lambda handler: handler
    )
    instance = types.SimpleNamespace(routes=table, prompt_queue=Queue())
    monkeypatch.setitem(
        sys.modules, "server", types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=instance))
    )
    for name, folder in {
        "pack": ROOT,
        "pack.nodes": ROOT / "nodes",
        "pack.d3po_core": ROOT / "d3po_core",
    }.items():
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, name, package)
    spec = importlib.util.spec_from_file_location("pack.nodes.routes", ROOT / "nodes" / "routes.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(host, capsys):
    """Call `dev.py run` on the running host: (exit code, what it said, what it complained of)."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments):
        code = run.main([str(argument) for argument in arguments] + ["--url", host.url])
        return code, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, before)
