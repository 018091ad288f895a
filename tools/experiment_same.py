"""What the pack does, as hashes: to see that a change of its code changes nothing that people get.

On one machine and with one number of threads the same code makes the same LoRAs to the bit. This trains every
method on one recording and runs the example workflows in small. It notes hashes of each LoRA's tensors, of
the files of a dataset and of a run, of the routes' answers, and of what the nodes say of themselves. Where
the file is there already, it is held against that.
"""

import argparse
import json
import os
import tempfile
import urllib.error
from pathlib import Path

from tools.experiment_templates import named_run, pick
from tools.host import ROOT, Host, make_base
from tools.same_files import digest_of, files_in, tensors_of
from tools.workflow import load, node, to_api, train_nodes

TEMPLATES = ("d3po_picker_loop", "d3po_thumbs", "d3po_objective_loop")
SMALL = {
    "D3POKSampler": {"steps": 3, "candidates": 3},
    "D3POPrompts": {"count": 2},
    "D3POTrainStep": {"epochs": 2, "rank": 2},
}


def defaults(definition):
    """A node's widgets at their defaults."""
    values = {}
    for part in ("required", "optional"):
        for name, (kind, *options) in definition["input"].get(part, {}).items():
            options = options[0] if options else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            if "default" in options:
                values[name] = options["default"]
            elif choices:
                values[name] = choices[0]["key"] if isinstance(choices[0], dict) else choices[0]
    return values


def training(info, judge, **changes):
    """A train step on a node's preferences, and its settings: all at their defaults but for `changes`."""
    values = defaults(info["D3POTrainStep"]) | defaults(info["D3POTrainSettings"]) | changes
    return train_nodes("train", {"model": ["loader", 0], "preferences": [judge, 0]}, values)


def recording():
    return {
        "loader": node("CheckpointLoaderSimple", ckpt_name="d3po-emoji.safetensors"),
        "text": node("CLIPTextEncode", clip=["loader", 1], text="a cat on a blue background"),
        "none": node("CLIPTextEncode", clip=["loader", 1], text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node("D3POKSampler", model=["loader", 0], seed=3, steps=4, cfg=3.0,
                        sampler_name="euler_ancestral", scheduler="normal", positive=["text", 0],
                        negative=["none", 0], latent_image=["empty", 0], denoise=1.0, candidates=4, eta=1.0),
        "decode": node("VAEDecode", samples=["sampler", 1], vae=["loader", 2]),
        "judge": node("D3POObjectivePreference", trajectory=["sampler", 0], images=["decode", 0],
                      objective="brightness (brighter)", second_objective="none", target_colour="#ff8800",
                      least_difference=0.0),
    }  # fmt: skip


def methods(host, info):
    """LoRA of every method after four updates on one recording."""
    for method in info["D3POTrainStep"]["input"]["optional"]["method"][1]["options"]:
        graph = recording() | {
            **training(info, "judge", method=method, epochs=4, rank=2, learning_rate=1e-3),
            "save": node(
                "D3POSaveLoRA",
                model=["loader", 0],
                lora=["train", 1],
                filename_prefix=f"loras/{method}",
                naming="ComfyUI",
            ),
        }
        file = host.run(graph)["outputs"]["save"]["text"][0]
        yield f"method {method}", tensors_of(host.base / "output" / file)


def templates(host, info):
    """LoRA of every template that records, after two small rounds."""
    for name in TEMPLATES:
        for round_ in range(2):
            prompt = to_api(load(ROOT / "example_workflows" / f"{name}.json"), info)
            for each in prompt.values():
                each["inputs"] |= {
                    key: value
                    for key, value in SMALL.get(each["class_type"], {}).items()
                    if not isinstance(each["inputs"].get(key), list)
                }
            named_run(prompt, f"same {name}")
            pick(host, prompt, name, "brighter", round_)
        yield name, tensors_of(host.base / "output" / "loras" / "d3po" / f"same {name}.safetensors")


def kept(host):
    """A recording in a dataset, judged by a person, and the run that learns from it: all their files."""
    graph = recording() | {
        "keep": node(
            "D3POSaveToDataset",
            trajectory=["sampler", 0],
            images=["decode", 0],
            dataset="same",
            annotator="me",
        ),
        "pick": node(
            "D3POPairPreference",
            trajectory=["keep", 0],
            images=["keep", 1],
            dataset=["keep", 2],
            picks="{}",
            when_missing="stop here",
        ),
    }
    graph.pop("judge")
    asked = host.run(graph)["outputs"]["pick"]
    yield "picker's question", digest_of(json.dumps(asked, sort_keys=True))
    graph["pick"]["inputs"]["picks"] = json.dumps(
        {"sets": {asked["d3po"][0]["set"]: {"ranking": [2, 0, 3, 1]}}}
    )
    graph |= training(host.object_info(), "pick", epochs=3, rank=2)
    graph["save"] = node(
        "D3POSaveRun", **defaults(host.object_info()["D3POSaveRun"]) | {"lora": ["train", 1], "run": "same"}
    )
    judged = host.run(graph)["outputs"]
    yield "picker's answer", digest_of(json.dumps(judged["pick"], sort_keys=True))
    for name, kind in (("dataset", "datasets"), ("run", "runs")):
        for path, value in files_in(host.base / "output" / "d3po" / kind / "same"):
            yield f"{name} {path}", value


def answers(host):
    """What the routes answer to what is right and wrong."""
    for body in ({}, [], {"prompt_id": "x", "node": "1", "picks": {}}, {"prompt_id": 1}, {"picks": "{}"}):
        try:
            reply = host.post("/d3po/answer", body)
        except urllib.error.HTTPError as error:
            reply = [error.code, error.read().decode()]
        yield f"answer to {json.dumps(body)}", digest_of(json.dumps(reply))
    yield "pending", digest_of(json.dumps(host.get("/d3po/pending")))


def noted(host):
    """{what: hash} of all."""
    info = host.object_info()
    ours = {name: definition for name, definition in sorted(info.items()) if name.startswith("D3PO")}
    found = {
        f"node {name}": digest_of(json.dumps([one["input"], one["output"], one["output_name"]]))
        for name, one in ours.items()
    }
    for part in (kept(host), answers(host), methods(host, info), templates(host, info)):
        for name, value in part:
            print(f"{value} {name}", flush=True)
            found[name] = value
    return found


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    file = parser.parse_args(arguments).file
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder, Host(make_base(folder)) as host:
        found = noted(host)
    if not file.exists():
        file.write_text(json.dumps(found, indent=1))
        print(f"written to {file}")
        return
    before = json.loads(file.read_text())
    changed = [name for name in before | found if before.get(name) != found.get(name)]
    print("changed: " + ", ".join(changed) if changed else "all as before")
    raise SystemExit(bool(changed))
