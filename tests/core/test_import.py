import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "torch",
    "peft",
    "safetensors",
    "numpy",
    "PIL",
    "pyarrow",
    "matplotlib",
    "filelock",
    "transformers",
    "tokenizers",
    "onnxruntime",
    "d3po_core",
} | set(sys.stdlib_module_names)

WITHOUT_HOST = """
import sys

HOST = ("comfy", "folder_paths", "server", "nodes", "execution")

class NoHost:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HOST or name.startswith("comfy_"):
            raise ModuleNotFoundError(f"{name} was asked for", name=name)

sys.meta_path.insert(0, NoHost())
from tools.launch_host import mend_torchaudio, mend_torchvision, torch_is_cpu_build
if torch_is_cpu_build():
    mend_torchvision()
    mend_torchaudio()

import importlib, pkgutil
import d3po_core
for module in pkgutil.walk_packages(d3po_core.__path__, "d3po_core."):
    importlib.import_module(module.name)

import torch
from d3po_core import Ancestral, pairs_from_scores
from d3po_core.candidates.preferences import Preferences
from d3po_core.candidates.trajectory import Trajectory
from d3po_core.training.adapter import Adapter
from d3po_core.training.loop import Example, Settings, Trainer

torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Linear(4, 4))
adapter = Adapter(net, rank=2, targets="all linear")
denoise = lambda x, sigma: net(x)
trajectory = Trajectory(torch.randn(3, 2, 1, 4, 4), torch.zeros(2, 2, 1, 4, 4), torch.tensor([3.0, 1.0, 0.0]),
                        Ancestral(1.0), "set", "net", "elsewhere")
metrics = Trainer(adapter, Settings(weighting="standardised")).fit(
    [Example(Preferences(trajectory, tuple(pairs_from_scores([0.0, 1.0]))), denoise)])
assert abs(metrics[0]["loss"] - 0.693147) < 1e-4
assert not [name for name in sys.modules if name.split(".")[0] in HOST or name.startswith("comfy_")]
print("trained without the host")
"""


def test_the_core_imports_and_trains_where_the_host_is_not_installed():
    run = subprocess.run([sys.executable, "-c", WITHOUT_HOST], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.endswith("trained without the host\n"), run.stderr


# which rooms a room may look into; files.py lies beside them
SEEN_FROM = {
    "taste": {"candidates", "training"},
    "search": {"candidates"},
    "": {"files"},
    "files": set(),
    "candidates": {"files"},
    "training": {"files", "candidates"},
    "runs": {"files", "candidates", "training"},
    "dataset": {"files", "candidates"},
    "exchange": {"files", "candidates", "dataset"},
}


def imported(path):
    """Absolute names of what a module of the core imports."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            name = ".".join([*above, *filter(None, [node.module])]) or "what lies above the package"
            yield from (f"{name}.{alias.name}" for alias in node.names)


def room_of(name):
    """The room of a module of the core, by its absolute name."""
    return name.split(".")[1]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "d3po_core").rglob("*.py")), ids=lambda path: "/".join(path.parts[-2:])
)
def test_a_core_module_imports_only_what_it_may(path):
    names = set(imported(path))
    tops = {name.split(".")[0] for name in names}
    assert tops <= ALLOWED, tops - ALLOWED
    room = path.relative_to(ROOT / "d3po_core").with_suffix("").parts[0].replace("__init__", "")
    seen = {room_of(name) for name in names if name.startswith("d3po_core.")} - {room}
    assert seen <= SEEN_FROM[room], seen - SEEN_FROM[room]


MISSING = """
import importlib, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in (
            "peft", "matplotlib", "pyarrow", "schedulefree", "bitsandbytes", "tensorboard"
        ):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import torch
import d3po_core
for module in pkgutil.walk_packages(d3po_core.__path__, "d3po_core."):
    if module.name != "d3po_core.runs.plots":
        importlib.import_module(module.name)
try:
    d3po_core.training.adapter.Adapter(torch.nn.Sequential(torch.nn.Linear(4, 4)), targets="all linear")
except ValueError as error:
    print(error)
"""


def test_a_missing_package_stops_only_what_needs_it_and_is_named():
    run = subprocess.run([sys.executable, "-c", MISSING], cwd=ROOT, capture_output=True, text=True)
    assert "the package peft, which cannot be imported" in run.stdout and "pip install peft" in run.stdout, (
        run.stderr
    )


@pytest.mark.parametrize("path", sorted((ROOT / "nodes").rglob("*.py")), ids=lambda path: path.stem)
def test_a_file_of_nodes_loads_without_what_only_some_nodes_need(path):
    at_the_top = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    names = {alias.name for node in at_the_top for alias in node.names}
    modules = {node.module or "" for node in at_the_top if isinstance(node, ast.ImportFrom)}
    assert not {"plots", "peft", "matplotlib"} & (
        names | {part for module in modules for part in module.split(".")}
    )
