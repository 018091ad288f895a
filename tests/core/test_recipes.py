"""The recipes of docs/architecture.md for the core, followed in a copy of it: what they say comes of it."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.recipes import PAGE, cook, titles
from tools.host import ROOT

BEGIN = """
import json, sys, traceback
from pathlib import Path
import torch
import tests.conftest  # PEFT imports where torch is a CPU build
import d3po_core
assert Path(d3po_core.__file__).is_relative_to(Path.cwd())
torch.set_num_threads(1)
said = {}
for title, check in json.load(sys.stdin).items():
    try:
        exec(check, {"torch": torch, "Path": Path})
        said[title] = ""
    except Exception:
        said[title] = traceback.format_exc()
print(json.dumps(said))
"""
TRAINED = """
from dataclasses import replace
from d3po_core.candidates.preferences import Preferences
from d3po_core.training.adapter import Adapter
from d3po_core.training.loop import Example, Settings, Trainer
from tests.core.conftest import Denoiser, make_net, record

def losses_of(method="D3PO", kernel=None):
    net = make_net()
    adapter, denoise = Adapter(net, rank=2, targets="all linear"), Denoiser(net)
    trajectory = record(denoise)
    trajectory = replace(trajectory, kernel=kernel) if kernel else trajectory
    settings = Settings(method=method, clip=0.0, beta=1.0, learning_rate=1e-2, epochs=4)
    metrics = Trainer(adapter, settings).fit([Example(Preferences(trajectory, ((0, 1), (0, 2))), denoise)])
    return [update["loss"] for update in metrics]
"""
CHECKS = {
    "A method": TRAINED
    + """
from d3po_core.training import losses
margins = 0.5 * (torch.tensor([3.0, 9.0]) - torch.tensor([2.0, 1.0]))
loss = losses.hinge(torch.tensor([3.0, 9.0]), torch.tensor([2.0, 1.0]), 0.5)
assert loss == (1 - margins).clamp(min=0).mean() == 0.25
first, *_, last = losses_of("hinge")
assert first == 1 and last < 1
""",
    "A kernel": TRAINED
    + """
from d3po_core.candidates.kernels import Share, described, kernel_of
kernel = Share(0.3)
assert kernel_of(described(kernel)) == kernel
x, x0 = torch.randn(2, 1, 1, 4, 4, dtype=torch.float64)
moved = kernel.mean(x, x0 + 1, 4.0, 1.5) - kernel.mean(x, x0, 4.0, 1.5)
assert torch.allclose(moved, kernel.drift(4.0, 1.5).expand_as(moved))
noise = 1.5 ** 2 - kernel.std(4.0, 1.5) ** 2  # what is left of x - x0, whose variance is sigma^2
assert torch.allclose((1 - kernel.drift(4.0, 1.5)) ** 2 * 4.0 ** 2, noise)
first, *_, last = losses_of(kernel=kernel)
assert abs(first - 0.693147) < 1e-5 and last < first
""",
    "An objective": """
from d3po_core.candidates.objectives import contrast
checks = torch.tensor([0.0, 1.0]).repeat(8).view(1, 4, 4, 1).expand(1, 4, 4, 3)
assert abs(contrast(checks)[0] - 0.5) < 1e-9 and contrast(torch.full((1, 4, 4, 3), 0.7))[0] < 1e-9
""",
    "An import format": """
from PIL import Image
from d3po_core.exchange.formats import read, recognise
folder = Path("votes")
folder.mkdir()
for name, grey in ("a", 10), ("b", 200):
    Image.new("L", (8, 8), grey).save(folder / f"{name}.png")
(folder / "votes.txt").write_text("b.png > a.png\\nnobody knows\\n")
problems = []
(record,) = read(folder, problems.append)
assert recognise(folder) == "votes" and record.pairs == ((0, 1),)
assert record.load(0).mean() > record.load(1).mean()
assert "votes.txt, line 2" in str(problems[0]) and len(problems) == 1
""",
}


def test_each_recipe_is_followed_here_or_in_the_host():
    assert sorted(titles()) == sorted([*CHECKS, "A node"])


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """title -> what its check raises, in one process: torch alone takes seconds to import."""
    folder = tmp_path_factory.mktemp("recipes")
    cook(folder, "d3po_core", *CHECKS)
    done = subprocess.run(
        [sys.executable, "-c", BEGIN],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps(CHECKS),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("title", CHECKS)
def test_what_a_recipe_says_comes_of_it(title, said):
    assert said[title] == ""


def test_the_page_names_files_that_are_there():
    text = PAGE.read_text("utf-8")
    linked = [PAGE.parent / name for name in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
    drawn = re.findall(r">((?:nodes|web)/[\w/.]*)", (PAGE.parent / "architecture.svg").read_text("utf-8"))
    assert linked and drawn
    assert not [path for path in [*linked, *(ROOT / name for name in drawn)] if not path.exists()]
