"""All recipes of docs/architecture.md at once, in a copy of the pack that a ComfyUI of its own loads."""

import pytest

from tests.host.graphs import judged, node
from tests.recipes import cook, titles
from tools.host import PACK, Host, make_base


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    base = make_base(tmp_path_factory.mktemp("recipes"))
    pack = base / "custom_nodes" / PACK
    pack.unlink()
    pack.mkdir()
    cook(pack, None, *titles())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with Host(base, ["--disable-api-nodes"]) as host:
            yield host


def test_the_host_offers_what_was_added(kitchen):
    nodes = kitchen.object_info()
    assert "hinge" in str(nodes["D3POTrainStep"]["input"]["optional"]["method"])
    assert "contrast (more contrast)" in str(
        nodes["D3POObjectivePreference"]["input"]["required"]["objective"]
    )
    assert nodes["D3POCountPairs"]["display_name"] == "D3PO Count Pairs"


def test_the_node_has_its_help_page(kitchen):
    assert kitchen.get(f"/extensions/{PACK}/docs/D3POCountPairs.md").startswith(b"# D3PO Count Pairs")


@pytest.mark.usefixtures("emoji_model")  # the probes' model is not in this host
def test_the_objective_judges_and_the_node_counts(kitchen):
    graph = judged(objective="contrast (more contrast)", candidates=3)
    graph["count"] = node("D3POCountPairs", preferences=["judge", 0])
    assert kitchen.run(graph)["outputs"]["count"]["text"] == ["3 pairs"]
