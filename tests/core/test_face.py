"""What others may rely on."""

import subprocess
import sys
from pathlib import Path

import pytest

import d3po_core

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "Ancestral",
    "log_prob",
    "log_ratio",
    "kl",
    "d3po",
    "diffusion_dpo",
    "pairs_from_scores",
    "jpeg_size",
}
ALONE = """
import sys
from d3po_core import Ancestral, d3po, log_ratio, pairs_from_scores
heavy = {"peft", "matplotlib", "pyarrow", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_names_that_others_may_rely_on_are_there():
    assert NAMES <= set(d3po_core.__all__) <= set(dir(d3po_core))
    assert all(callable(getattr(d3po_core, name)) for name in d3po_core.__all__)


def test_another_name_is_an_error_as_in_any_module():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        d3po_core.nothing


def test_the_equations_load_without_what_they_do_not_need():
    subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, check=True)
