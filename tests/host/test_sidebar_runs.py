"""What the tab in the sidebar asks of runs on disk."""

import json

import pytest

from d3po_core.runs.store import load_record
from tests.host.answers import NO_TEXT, PATHS, encode
from tests.host.graphs import TEXT, loop, node, probe, stage, stock_image, unique

LORA = "LoraLoaderModelOnly"


def named(host, run):
    """What is told of a run, or None."""
    return next((one for one in host.get("/d3po/runs")["runs"] if one["name"] == run), None)


def blind(run, picks=None):
    """A blind session over one pair: of the base, and of a run's LoRA."""
    return stage() | {
        "run": node("D3POLoadRun", model=["loader", 0], run=run),
        **stock_image(name="base"),
        **stock_image(("run", 0), name="tuned"),
        "session": node("D3POWinRate", images_a=["base_decode", 0], images_b=["tuned_decode", 0],
                        picks=json.dumps({"sets": picks or {}}), name_a="base", name_b="LoRA"),
    }  # fmt: skip


def ask(client, what, **body):
    status, reply = client.post(encode(body), path=f"/d3po/{what}")
    return status, reply.get("told") or reply.get("file") or reply["error"]


@pytest.fixture(scope="module")
def run(host):
    """Of two rounds; a VAE showed the second one's pictures alone."""
    name = unique("seen")
    host.run(loop(name, seed=301))
    host.run(loop(name, dict(vae=["loader", 2]), seed=302))
    return name


def test_a_blind_session_is_kept_with_the_run_whose_lora_it_was_of(host, run):
    (pair,) = host.run(blind(run))["outputs"]["session"]["d3po"]
    assert named(host, run)["win_rate"] is None, "until it is complete it would sway"
    host.run(blind(run, {pair["set"]: {"pairs": [[1, 0]]}}))
    rate = named(host, run)["win_rate"]
    assert (rate["share"], rate["answers"]) == (1, 1) and rate["low"] == pytest.approx(0.2065, abs=1e-4)
    turned = blind(run)
    turned["session"]["inputs"] |= {"images_a": ["tuned_decode", 0], "images_b": ["base_decode", 0]}
    (pair,) = host.run(turned)["outputs"]["session"]["d3po"]
    turned["session"]["inputs"]["picks"] = json.dumps({"sets": {pair["set"]: {"pairs": [[1, 0]]}}})
    assert "win rate of LoRA: 100%" in host.run(turned)["outputs"]["session"]["text"][0]
    assert named(host, run)["win_rate"] == rate, "the second side was the base"


def test_runs_are_told_with_their_pictures_and_what_is_done_is_on_disk(host, client, run, lora_file):
    told, first = named(host, run), host.get("/d3po/runs")["runs"][0]
    assert first["name"] == run, "the newest comes first"
    assert (told["step"], told["rounds"], told["sets"], told["labels"]) == (2, 2, 2, 4)
    assert (told["checkpoints"], told["problem"], told["lora"]) == ([1, 2], "", f"d3po/{run}.safetensors")
    assert told["pictures"]["prompts"] == [TEXT] * 4
    before, now = ([host.image(one) for one in told["pictures"][side]] for side in ("before", "now"))
    assert all(one.format == "PNG" for one in before + now)
    assert all(a.tobytes() != b.tobytes() for a, b in zip(before, now)), "the LoRA has learned something"

    branch = unique("branch")
    status, said = ask(client, "runs/branch", run=run, new_name=branch, checkpoint="1")
    assert (status, said) == (200, f"{branch}: begins at step 1 of {run}")
    assert named(host, branch)["pictures"] is None and lora_file(branch).is_file()
    other = unique("branch")
    ask(client, "runs/branch", run=run, new_name=other, checkpoint="latest")
    assert host.image(named(host, other)["pictures"]["now"][0]).tobytes() == now[0].tobytes()

    for wrong in (dict(new_name=branch, checkpoint="latest"), dict(new_name="../x", checkpoint="latest")):
        assert ask(client, "runs/branch", run=run, **wrong)[0] == 404
    assert ask(client, "runs/branch", run=run, new_name=unique(), checkpoint="7")[0] == 404

    asked = told["as_it_is"]
    assert ask(client, "undo", run=run)[0] == 200
    status, said = ask(client, "runs/delete", run=run, confirm=asked)
    assert status == 409 and "has changed" in said
    undone = named(host, run)
    assert (undone["step"], undone["pictures"]) == (1, None)

    folder = host.base / "output"
    status, file = ask(client, "runs/export", run=run)
    assert status == 200 and (folder / file).is_file() and lora_file(run).is_file()
    assert ask(client, "runs/export", run=run)[1] != file
    listed = file.replace("\\", "/").removeprefix("loras/")
    lora = node(LORA, model=["loader", 0], lora_name=listed, strength_model=1.0)
    host.run(stage() | {"lora": lora, "look": probe("Model", "lora")})

    status, said = ask(client, "runs/delete", run=run, confirm=undone["as_it_is"])
    assert (status, said) == (200, f"{run}: deleted")
    assert named(host, run) is None and not lora_file(run).exists()
    assert not (folder / "d3po" / "runs" / run).exists() and (folder / file).is_file()
    assert load_record(folder / "d3po" / "runs" / other)["step"] == 2


def test_a_damaged_run_is_told_with_what_is_wrong_and_can_be_deleted(host, client, run_file):
    name = unique("damaged")
    run_file(name).parent.mkdir(parents=True)
    run_file(name).write_bytes(b"nothing that is a run")
    told = named(host, name)
    assert "is damaged" in told["problem"] and told["as_it_is"] == name
    assert ask(client, "runs/export", run=name)[0] == 404
    assert ask(client, "runs/delete", run=name, confirm=f"{name} 0")[0] == 409
    assert ask(client, "runs/delete", run=name, confirm=name)[0] == 200
    assert not run_file(name).parent.exists()


@pytest.mark.parametrize(
    "what, fields",
    [("branch", ["run", "new_name", "checkpoint"]), ("delete", ["run", "confirm"]), ("export", ["run"])],
)
def test_other_bodies_are_refused_and_touch_nothing(host, client, what, fields):
    before, began = json.dumps(host.get("/d3po/runs")), len(host.log())
    right = dict.fromkeys(fields, "no such run")
    for wrong in [{}, right | {"more": "x"}, *(right | {fields[-1]: value} for value in NO_TEXT)]:
        assert client.post(encode(wrong), path=f"/d3po/runs/{what}")[0] == 400
    for name in PATHS:
        assert client.post(encode(right | {"run": name}), path=f"/d3po/runs/{what}")[0] in (404, 409)
    assert json.dumps(host.get("/d3po/runs")) == before and "Traceback" not in host.log()[began:]
