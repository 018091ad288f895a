"""The nodes as the host shows them: an interface that saved workflows and scripts rely on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.host import PACK, ROOT

NODES = [
    "D3POPrompts",
    "D3POKSampler",
    "D3POSamplerCustom",
    "D3POPairPreference",
    "D3POObjectivePreference",
    "D3POScorePreference",
    "D3POObjectiveScorer",
    "D3POCLIPScorer",
    "D3POAestheticScorer",
    "D3POImageRewardScorer",
    "D3POONNXScorer",
    "D3PORuleScorer",
    "D3POTrainStep",
    "D3POTrainSettings",
    "D3PORewardTrainStep",
    "D3POTastePreference",
    "D3POLoadRun",
    "D3POSaveRun",
    "D3POSaveLoRA",
    "D3POManageRuns",
    "D3POPlot",
    "D3POImplicitReward",
    "D3POImplicitPreference",
    "D3POImplicitAccuracy",
    "D3POCompare",
    "D3POWinRate",
    "D3PORate",
    "D3POSaveToDataset",
    "D3POLoadSets",
    "D3POLoadPreferences",
    "D3PODatasetStatistics",
    "D3POMergeDatasets",
    "D3POImportPreferences",
    "D3POExportPreferences",
    "D3POEncodePairs",
    "D3POBestOfN",
    "D3PONoiseSearch",
    "D3PODOODL",
    "D3PORENO",
    "D3POTasteScorer",
    "D3POImplicitScorer",
]
SOCKETS = {
    "MODEL",
    "CLIP",
    "CLIP_VISION",
    "VAE",
    "CONDITIONING",
    "LATENT",
    "NOISE",
    "GUIDER",
    "SIGMAS",
    "IMAGE",
    "LORA_MODEL",
    "LOSS_MAP",
    "D3PO_TRAJECTORY",
    "D3PO_PREFERENCES",
    "D3PO_SETTINGS",
    "D3PO_SCORER",
}


def flat(inputs):
    """(name, spec) of all inputs, also of those that a choice of a dynamic combo shows."""
    for section in ("required", "optional"):
        for name, spec in inputs.get(section, {}).items():
            yield name, spec
            for option in spec[1].get("options", ()) if kind_of(spec) == "COMFY_DYNAMICCOMBO_V3" else ():
                yield from ((f"{name}.{inner}", each) for inner, each in flat(option["inputs"]))


def interface(definition):
    """What others rely on of one node: its inputs by section in order, and its outputs."""
    inputs = {
        section: [[name, kind_of(definition["input"][section][name])] for name in names]
        for section, names in definition["input_order"].items()
        if section != "hidden"
    }
    return {
        "required": inputs.get("required", []),
        "optional": inputs.get("optional", []),
        "outputs": [[name, kind] for name, kind in zip(definition["output_name"], definition["output"])],
    }


def kind_of(spec):
    return "COMBO" if isinstance(spec[0], list) else spec[0]


def breaking_changes(old, new):
    """Why saved workflows or scripts would break: a sentence for each reason. Appending is no such change."""
    found = [f"node {node_id} is gone" for node_id in old if node_id not in new]
    for node_id in old.keys() & new.keys():
        for section in ("required", "optional", "outputs"):
            before, after = old[node_id][section], new[node_id][section]
            for place, (name, kind) in enumerate(before):
                now = after[place] if place < len(after) else None
                if now != [name, kind]:
                    found.append(
                        f"{node_id}: {section} {place} was {name} ({kind}), and is now "
                        f"{'missing' if now is None else f'{now[0]} ({now[1]})'}"
                    )
        added = new[node_id]["required"][len(old[node_id]["required"]) :]
        if {kind for _, kind in added} - SOCKETS and {kind for _, kind in old[node_id]["optional"]} - SOCKETS:
            found.append(
                f"{node_id}: a new required widget moves the optional ones, whose saved values are positional"
            )
    return found


@pytest.fixture
def ours(object_info):
    return {name: info for name, info in object_info.items() if name.startswith("D3PO")}


def test_the_host_loads_every_node_of_the_pack(ours):
    assert set(NODES) == set(ours)


def test_every_node_has_a_help_page(ours):
    pages = {path.stem: path.read_text("utf-8") for path in (ROOT / "web" / "docs").glob("*.md")}
    assert pages.keys() == ours.keys()
    assert all(
        text.startswith(f"# {ours[name]['display_name']}\n") and len(text) > 200
        for name, text in pages.items()
    )


@pytest.mark.parametrize("node_id", NODES)
def test_every_node_and_input_is_explained(ours, node_id):
    info = ours[node_id]
    assert len(info["description"]) > 30
    assert info["search_aliases"] and info["display_name"].startswith("D3PO") and info["category"] == "D3PO"
    for name, spec in flat(info["input"]):
        assert len(spec[1].get("tooltip") or "") > 5, f"{name} has no tooltip"
    assert all(info["output_tooltips"]) and len(info["output_tooltips"]) == len(info["output"])


def test_node_ids_and_inputs_only_ever_grow_at_the_end(ours, snapshot):
    now = {node_id: interface(info) for node_id, info in ours.items()}
    assert breaking_changes(snapshot, now) == []
    if os.environ.get("D3PO_ACCEPT_INTERFACE"):
        lines = [f"{json.dumps(node_id)}: {json.dumps(now[node_id])}" for node_id in sorted(now)]
        Path(__file__).with_name("interface.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    else:
        assert snapshot == now, (
            "something was appended: run this test once with D3PO_ACCEPT_INTERFACE=1 to record it"
        )


OLD = {
    "D3PONode": {
        "required": [["model", "MODEL"], ["steps", "INT"]],
        "optional": [["text", "STRING"]],
        "outputs": [["model", "MODEL"]],
    }
}


@pytest.mark.parametrize(
    "section, entries, sentence",
    [
        ("required", [["model", "MODEL"]], "required 1 was steps (INT), and is now missing"),
        (
            "required",
            [["model", "MODEL"], ["cfg", "FLOAT"], ["steps", "INT"]],
            "required 1 was steps (INT), and is now cfg",
        ),
        (
            "required",
            [["steps", "INT"], ["model", "MODEL"]],
            "required 0 was model (MODEL), and is now steps",
        ),
        ("required", [["model", "MODEL"], ["steps", "FLOAT"]], "is now steps (FLOAT)"),
        ("required", [["model", "MODEL"], ["steps", "INT"], ["cfg", "FLOAT"]], "moves the optional ones"),
        ("outputs", [["steps", "INT"]], "outputs 0 was model (MODEL)"),
    ],
)
def test_the_comparison_names_each_change_that_breaks_workflows(section, entries, sentence):
    assert any(
        sentence in change
        for change in breaking_changes(OLD, {"D3PONode": OLD["D3PONode"] | {section: entries}})
    )


@pytest.mark.parametrize(
    "section, entry",
    [("required", ["vae", "VAE"]), ("optional", ["cfg", "FLOAT"]), ("outputs", ["report", "STRING"])],
)
def test_the_comparison_lets_things_be_appended(section, entry):
    assert (
        breaking_changes(OLD, {"D3PONode": OLD["D3PONode"] | {section: OLD["D3PONode"][section] + [entry]}})
        == []
    )
    assert breaking_changes(OLD, {}) == ["node D3PONode is gone"]


def test_the_host_starts_without_a_complaint_about_the_pack(host):
    start = host.log().split("got prompt")[0]
    assert PACK in start
    assert "Traceback" not in start and "IMPORT FAILED" not in start


def test_the_face_of_the_pack_imports_without_comfyui(tmp_path):
    code = """
import importlib.util, inspect, sys
spec = importlib.util.spec_from_file_location("pack", sys.argv[1], submodule_search_locations=[sys.argv[2]])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
assert inspect.iscoroutinefunction(pack.comfy_entrypoint)
assert not {"comfy", "comfy_api", "folder_paths", "nodes", "torch"} & set(sys.modules)
assert importlib.util.find_spec("comfy") is None
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "__init__.py"), str(ROOT)],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
