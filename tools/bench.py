"""Measurements on the shipped workflow in a real ComfyUI.

Machines are noisy: rivals run in turn. Each figure is the median of the pairs' ratios with its smallest and
largest.

    python dev.py bench speed       what recording, the kept reference and the shared passes save or cost
    python dev.py bench picker      how long the picker takes from a key to the next pair (needs Chromium)
    python dev.py bench judging     how long one who judges waits for pictures while runs record (Chromium)
    python dev.py bench dataset     a dataset of 10,000 sets: to open, to look over, to train from
    python dev.py bench methods     every method on one dataset: accuracy, objective, KL, time, memory (slow)
    python dev.py bench schedules   how the paper's weighting shares the gradient over each schedule's steps
    python dev.py bench windows     what training on a window of the steps costs, and what it does to learning
    python dev.py bench memory      what a train pass of full-size models keeps, counted without a GPU
    python dev.py bench saving      what keeping a train step's state costs, of a LoRA of SDXL's size
    python dev.py bench step        an update beside the bare network, and beside a loop in the official style
    python dev.py bench ranks       what two processes gain, and what more would have to tell each other
    python dev.py bench learning    what settings gain in the objective, over several seeds (slow)
"""

import argparse
import copy
import importlib
import statistics
import time

from tools.demo import EVALUATED, WORKFLOW, evaluate, measure, node_of, train_round
from tools.host import BASE, Host, make_base
from tools.workflow import load, to_api

SIZES = {"steps": 10, "candidates": 4}
# recorded steps, over dozens of updates: what these settings are for
RECORDED_STEPS = dict(learning_rate=1.5e-3, beta=100.0, clip=0.0, weighting="standardised", sets_per_update=2)
LEARNING = {
    "recorded steps": {},
    "paper weighting": {"weighting": "paper", "beta": 0.1, "clip": 0.1},
    "guidance off": {"guidance": "off (faster)"},
    "half of the steps": {"step_fraction": 0.5},
    "reference: round start": {"reference": "round start"},
}
# what is measured in a module of its own: (module, function, the options that it takes)
ELSEWHERE = {
    "picker": ("bench_picker", "measure", ["keys"]),
    "judging": ("bench_judging", "measure", ["runs", "pace"]),
    "dataset": ("bench_dataset", "measure", ["sets", "indexed"]),
    "methods": ("bench_methods", "main", ["seeds", "only", "write"]),
    "schedules": ("bench_schedules", "main", ["write"]),
    "windows": ("bench_windows", "main", ["seeds", "write"]),
    "memory": ("bench_memory", "main", ["json", "write"]),
    "saving": ("bench_saving", "main", ["repeats"]),
    "step": ("bench_step", "main", ["json", "write", "repeats"]),
    "ranks": ("bench_ranks", "main", ["repeats", "write"]),
}


def timed(host, prompt):
    began = time.monotonic()
    host.run(prompt)
    return time.monotonic() - began


def compare(host, name, ours, theirs, repeats):
    """Run two prompts in turn; each is a function of the repeat, so that nothing comes from the cache."""
    timed(host, ours(-1)), timed(host, theirs(-1))
    pairs = [(timed(host, ours(i)), timed(host, theirs(i))) for i in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    seconds = [statistics.median(side) for side in zip(*pairs)]
    print(
        f"{name}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
        f"{seconds[0]:.2f} s against {seconds[1]:.2f} s",
        flush=True,
    )


def on_recorded_steps(prompt):
    """The prompt with D3PO as its train step's method, and settings of its own."""
    inputs = prompt[node_of(prompt, "D3POTrainStep")]["inputs"]
    inputs |= {"method": "D3PO", "epochs": 1, "settings": ["settings", 0]}
    return prompt | {"settings": {"class_type": "D3POTrainSettings", "inputs": dict(RECORDED_STEPS)}}


def variation(prompt, **changes):
    """A copy of an API prompt with inputs changed: Type__input=value."""
    prompt = copy.deepcopy(prompt)
    for key, value in changes.items():
        class_type, name = key.split("__")
        prompt[node_of(prompt, class_type)]["inputs"][name] = value
    return prompt


def upstream(prompt, class_type, output):
    """Only what one node needs, ended by an output node that looks at one of its outputs."""
    wanted, todo = {}, [node_of(prompt, class_type)]
    while todo:
        node_id = todo.pop()
        wanted[node_id] = prompt[node_id]
        todo += [value[0] for value in prompt[node_id]["inputs"].values() if isinstance(value, list)]
    return wanted | {
        "end": {"class_type": "PreviewAny", "inputs": {"source": [node_of(prompt, class_type), output]}}
    }


def speed(host, prompt, repeats):
    prompt = variation(
        prompt,
        D3POPrompts__count=1,
        D3POLoadRun__run="bench never saved",
        D3POKSampler__steps=SIZES["steps"],
        D3POKSampler__candidates=SIZES["candidates"],
    )
    recording = upstream(prompt, "D3POKSampler", 1)
    sampler, latent = node_of(prompt, "D3POKSampler"), node_of(prompt, "EmptyLatentImage")
    stock = copy.deepcopy(recording)
    stock[sampler]["class_type"] = "KSampler"
    for name in ("candidates", "eta", "window_steps", "window_start"):
        del stock[sampler]["inputs"][name]
    stock[latent]["inputs"]["batch_size"] = SIZES["candidates"]
    stock["end"]["inputs"]["source"] = [sampler, 0]
    seeded = lambda base: lambda i: variation(base, D3POPrompts__seed=100 + i)
    compare(
        host,
        "recording against the stock KSampler, the same batch",
        seeded(recording),
        seeded(stock),
        repeats,
    )

    training = upstream(prompt, "D3POTrainStep", 3)
    step = lambda **changes: lambda i: variation(training, D3POTrainSettings__seed=100 + i, **changes)
    compare(
        host,
        "a train step with all steps against half of them",
        step(),
        step(D3POTrainSettings__step_fraction=0.5),
        repeats,
    )
    compare(
        host,
        "a train step with guidance off against as recorded",
        step(D3POTrainSettings__guidance="off (faster)"),
        step(),
        repeats,
    )
    compare(
        host,
        "a train step, candidates one by one against together",
        step(D3POTrainSettings__candidates_per_pass=1),
        step(),
        repeats,
    )


def learning(host, prompt, seeds, rounds):
    before = measure(evaluate(host, prompt, EVALUATED))
    print(
        f"{rounds} rounds, {seeds} seeds; gain in mean brightness of held-out seeds, "
        "with its 95% interval over seeds"
    )
    for name, changes in LEARNING.items():
        gains, seconds = [], []
        for seed in range(seeds):
            run = f"bench {time.time_ns()}"
            trial = variation(
                prompt,
                D3POLoadRun__run=run,
                D3POSaveRun__run=run,
                D3POTrainSettings__seed=seed,
                **{f"D3POTrainSettings__{k}": v for k, v in changes.items()},
            )
            began = time.monotonic()
            for round_ in range(rounds):
                train_round(host, trial, seed=1000 * (seed + 1) + round_)
            seconds.append(time.monotonic() - began)
            after = measure(evaluate(host, trial, EVALUATED, f"d3po/{run}.safetensors"))
            gains.append((after - before).mean())
        half = 1.96 * statistics.stdev(gains) / seeds**0.5 if seeds > 1 else float("nan")
        mean = statistics.fmean(gains)
        print(
            f"{name}: {mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}] "
            f"in {statistics.fmean(seconds):.0f} s, "
            f"{60 * mean / statistics.fmean(seconds):+.4f} a minute",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        nargs="?",
        default="speed",
        choices=["speed", *ELSEWHERE, "learning"],
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keys", type=int, default=50)
    parser.add_argument("--runs", type=int, default=4, help="judging: how many are queued")
    parser.add_argument("--pace", type=float, default=3.0, help="judging: seconds that a set takes")
    parser.add_argument("--sets", type=int, default=600)
    parser.add_argument(
        "--indexed", type=int, default=10_000, help="dataset: sets that are in the index alone"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--only", default="", help="methods: only those with this in their name; the others stay as measured"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="methods, schedules, windows: put the table into docs/methods.md; memory, step: into "
        "docs/memory.md; ranks: into docs/scale.md",
    )
    parser.add_argument("--json", metavar="FILE", help="memory, step: write the rows to this file too")
    return measured(parser.parse_args())


def measured(arguments):
    if arguments.what in ELSEWHERE:
        module, function, names = ELSEWHERE[arguments.what]
        measure = getattr(importlib.import_module(f"tools.{module}"), function)
        return measure(*(getattr(arguments, name) for name in names))
    with Host(make_base(BASE)) as host:
        prompt = on_recorded_steps(to_api(load(WORKFLOW), host.object_info()))
        if arguments.what == "speed":
            speed(host, prompt, arguments.repeats)
        else:
            learning(host, prompt, arguments.seeds, arguments.rounds)


if __name__ == "__main__":
    main()
