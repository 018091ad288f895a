"""The main job, start to end. Leaves its results in demo_output/.

A real ComfyUI runs the shipped objective workflow round after round. Then the stock nodes sample the same
seeds with and without the LoRA."""

import argparse
import json
import shutil
import statistics
import time

from d3po_core.candidates import objectives as measures
from tools import sheet
from tools.host import BASE, ROOT, Host, make_base
from tools.stock import stock_images
from tools.workflow import load, to_api

OUT = ROOT / "demo_output"
WORKFLOW = ROOT / "example_workflows" / "d3po_objective_loop.json"
RUN = "demo"
LORAS = BASE / "output" / "loras"
ROUNDS = 2
EVALUATED = 64
FOLLOWED = 16  # of these seeds, the first are also sampled after every round
MEASURE = "brightness"


def node_of(prompt, class_type):
    """The id of the one node of a type."""
    (found,) = [node_id for node_id, node in prompt.items() if node["class_type"] == class_type]
    return found


def prepare(host):
    """The shipped workflow as an API prompt, with the demo's run name and no run of that name on disk."""
    shutil.rmtree(BASE / "output" / "d3po" / "runs" / RUN, ignore_errors=True)
    prompt = to_api(load(WORKFLOW), host.object_info())
    for class_type in ("D3POLoadRun", "D3POSaveRun"):
        prompt[node_of(prompt, class_type)]["inputs"]["run"] = RUN
    return prompt


def train_round(host, prompt, seed):
    """Queue the workflow once: the objective's values, [set][candidate], and the train step's report."""
    prompt[node_of(prompt, "D3POPrompts")]["inputs"]["seed"] = seed
    outputs = host.run(prompt)["outputs"]
    flat = outputs[node_of(prompt, "D3POObjectivePreference")]["objective"]
    candidates = prompt[node_of(prompt, "D3POKSampler")]["inputs"]["candidates"]
    values = [flat[i : i + candidates] for i in range(0, len(flat), candidates)]
    return values, outputs[node_of(prompt, "D3POTrainStep")]["text"][0].splitlines()


def lora_after(round_):
    """The LoRA file of a round, as Load LoRA names it. A copy: that node reads a file of a name only once."""
    name = f"d3po/{RUN} {round_ + 1}.safetensors"
    shutil.copyfile(LORAS / f"d3po/{RUN}.safetensors", LORAS / name)
    return name


def evaluate(host, prompt, count, lora=None):
    """PIL images of the first `count` held-out seeds, by stock nodes with the workflow's prompts."""
    lines = prompt[node_of(prompt, "D3POPrompts")]["inputs"]["prompts"].splitlines()
    sampler = prompt[node_of(prompt, "D3POKSampler")]["inputs"]
    seeds = range(1, count + 1)  # far below the seeds that D3PO Prompts draws for training
    return stock_images(
        host,
        [lines[seed % len(lines)] for seed in seeds],
        seeds,
        lora=lora,
        **{name: sampler[name] for name in ("steps", "cfg", "sampler_name", "scheduler")},
    )


def measure(images):
    return getattr(measures, MEASURE)(sheet.as_batch(images))


def summary(values):
    """Mean and its 95% confidence interval (normal approximation)."""
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    began = time.monotonic()
    OUT.mkdir(exist_ok=True)
    print("starting ComfyUI", flush=True)
    with Host(make_base(BASE)) as host:
        prompt = prepare(host)
        print(f"sampling {EVALUATED} seeds before training", flush=True)
        before = evaluate(host, prompt, EVALUATED)
        followed = []
        for round_ in range(rounds):
            values, facts = train_round(host, prompt, seed=1000 + round_)
            if round_ == 0:  # sampled before any training
                spread = statistics.fmean(statistics.variance(candidates) for candidates in values) ** 0.5
            lora = lora_after(round_)
            followed.append(measure(evaluate(host, prompt, FOLLOWED, lora)) - measure(before[:FOLLOWED]))
            print(
                f"round {round_ + 1}/{rounds}: {facts[0]}; {MEASURE} of {FOLLOWED} held-out seeds "
                f"{followed[-1].mean():+.4f}",
                flush=True,
            )
        print(f"sampling {EVALUATED} seeds with the LoRA", flush=True)
        after = evaluate(host, prompt, EVALUATED, lora)
    shutil.copyfile(LORAS / lora, OUT / "lora.safetensors")
    measured = [measure(images).tolist() for images in (before, after)]
    result = {
        "objective": MEASURE,
        "seeds": EVALUATED,
        "rounds": rounds,
        "seconds": round(time.monotonic() - began, 1),
        "within_prompt_std": spread,
        "before": summary(measured[0]),
        "after": summary(measured[1]),
        "difference": summary([b - a for a, b in zip(*measured)]),
    }
    (OUT / "result.json").write_text(json.dumps(result, indent=2))
    sheet.before_after(before, after, OUT / "before_after.png")
    sheet.by_round(followed, spread, MEASURE, OUT / "objective.png")
    moved = result["difference"]["mean"] / spread
    print(
        f"{MEASURE}: {result['before']['mean']:.4f} -> {result['after']['mean']:.4f}, "
        f"{moved:.2f} within-prompt standard deviations, in {result['seconds']:.0f} s; see {OUT.name}/"
    )
    if result["difference"]["ci95"][0] <= 0:
        raise SystemExit("the objective did not rise: its interval holds 0")


if __name__ == "__main__":
    main()
