"""Training a model whose weights leave too little room."""

import importlib.util
from types import SimpleNamespace

import pytest

from tests.host.graphs import found, node, probe, trained
from tools.bench_memory import host as comfy_of
from tools.host import ROOT


@pytest.fixture(scope="module")
def management():
    return comfy_of().model_management


@pytest.fixture
def offloading(management, monkeypatch):
    """The module, and an Offloading of a model of 100 bytes."""
    path = ROOT / "nodes" / "host" / "offloading.py"
    spec = importlib.util.spec_from_file_location("offloading", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(management, "unload_all_models", lambda: None)
    return module, lambda **model: module.Offloading(
        SimpleNamespace(**{"load_device": "card", "offload_device": "cpu", "model_size": lambda: 100} | model)
    )


def test_the_model_is_loaded_again_and_less_of_it_until_a_pass_fits(management, offloading):
    module, of = offloading
    before, tried, room = management.EXTRA_RESERVED_VRAM, [], of()

    def work():
        reserved = management.EXTRA_RESERVED_VRAM - before
        tried.append(reserved)
        room.require(40, free=10 + reserved)
        if reserved < 60:
            raise management.OOM_EXCEPTION
        return "learned"

    assert room.run(work) == "learned" and tried == [0, 30, 55, 80]
    assert management.EXTRA_RESERVED_VRAM == before


@pytest.mark.parametrize("model", [{}, {"offload_device": "card"}], ids=["all went", "nowhere to go"])
def test_what_no_weights_can_make_room_for_is_the_hosts_own_error(management, offloading, model):
    _, of = offloading
    tried, room = [], of(**model)

    def work():
        tried.append(1)
        room.require(0, free=0)
        raise management.OOM_EXCEPTION

    with pytest.raises(management.OOM_EXCEPTION):
        room.run(work)
    assert len(tried) == (1 if model else 5) and room.require(99, free=0) is None


def test_a_model_that_fills_its_card_learns_the_same_with_half_of_it_in_main_memory(host):
    graph = trained(dict(epochs=2), seed=126)
    usual, began = found(host.run(graph), "losses"), len(host.log())
    graph["crowded"] = node("TestCrowded", model=["loader", 0])
    graph["train"]["inputs"]["model"] = ["crowded", 0]
    graph |= {"losses": probe("LossMap", "train", 2)}
    assert found(host.run(graph), "losses") == usual
    assert host.log()[began:].count("loaded partially") >= 1
