"""Every method of the train step on one fixed dataset of the small model: what it learns, and what it costs.

A dataset of recorded candidates is judged by brightness once. A share of its sets is held out. Each method
then trains a LoRA on the rest, from several seeds. A seed draws the LoRA's first weights, the order of sets,
steps and noise. All are measured alike: on every recorded step of the held-out sets (a train step at learning
rate 0), and by the brightness of images that the stock nodes sample. The result goes to
bench_output/methods.json, and with --write to docs/methods.md.
"""

import json
import os
import queue
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
from scipy import stats

from d3po_core.training import metrics
from tools.demo import WORKFLOW, evaluate, measure, node_of
from tools.host import BASE, ROOT, Host, make_base
from tools.measured import put
from tools.stock import CHECKPOINT
from tools.workflow import load, node, to_api, train_nodes

OUT, DOC = ROOT / "bench_output" / "methods.json", ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- measured: python dev.py bench methods --write -->", "<!-- end -->"
WORKERS = 2  # methods at a time, each in a host of its own with one thread
SETS, CANDIDATES, STEPS, CFG, CLEARLY, HELD_OUT, EVALUATED = 20, 4, 5, 1.0, 0.03, 0.4, 12
COMMON = dict(
    epochs=2,
    sets_per_update=2,
    learning_rate=2e-3,
    beta=100.0,
    clip=0.0,
    weighting="standardised",
    reference="base",
    guidance="as recorded",
    step_fraction=0.5,
    rank=8,
    alpha=8.0,
    targets="all linear and convolutions",
    weight_decay=1e-4,
    max_grad_norm=1.0,
    candidates_per_pass=0,
    dpo_beta=5000.0,
    draws_per_set=2,
)
# what differs from the node's defaults; PPO's clip of 1e-4 is made for new samples after each update
METHODS = {
    "D3PO": {},
    "Diffusion-DPO": {},
    "IPO": {"beta": 20.0},  # its target, a log-ratio difference of 1 / (2 beta), is too near at 100
    "DPO with label smoothing": {},
    "DPO with winner anchor": {},
    "Diffusion-SDPO": {},
    "beta-DPO": {},
    "MaPO": {},
    "Diffusion-KTO": {},
    "DDPO": {"ratio_clip": 0.1},
    "DPOK": {"ratio_clip": 0.1},
    "reward-weighted": {},
    "DiffusionNFT": {},
    "supervised": {},
}


def recording(prompt, dataset):
    """The shipped loop's recording and judge without a run, into a dataset."""
    loader = node_of(prompt, "CheckpointLoaderSimple")
    wanted = {
        "CheckpointLoaderSimple",
        "D3POPrompts",
        "CLIPTextEncode",
        "EmptyLatentImage",
        "D3POKSampler",
        "VAEDecode",
        "D3POObjectivePreference",
    }
    graph = {
        name: dict(each, inputs=dict(each["inputs"]))
        for name, each in prompt.items()
        if each["class_type"] in wanted
    }
    sampler, judge = (
        graph[node_of(graph, "D3POKSampler")]["inputs"],
        graph[node_of(graph, "D3POObjectivePreference")],
    )
    sampler |= {"model": [loader, 0], "candidates": CANDIDATES}
    graph[node_of(graph, "D3POPrompts")]["inputs"] |= {"count": SETS, "seed": 1}
    graph["save"] = node(
        "D3POSaveToDataset",
        trajectory=judge["inputs"]["trajectory"],
        images=judge["inputs"]["images"],
        dataset=dataset,
        annotator="bench",
    )
    judge["inputs"] |= {"dataset": ["save", 2], "least_difference": CLEARLY}
    return graph


def training(dataset, run, seed, changes):
    """Load preferences, train, save, and measure on the held-out sets with a train step that changes none."""

    def loaded(split, **more):
        return node(
            "D3POLoadPreferences",
            dataset=dataset,
            split=split,
            held_out=HELD_OUT,
            annotators="",
            joining="all",
            since="",
            until="",
            **({"limit": 0} | more),
        )

    still = dict(COMMON, learning_rate=0.0, weight_decay=0.0, epochs=1, step_fraction=0.01)
    return {
        "loader": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "train_sets": loaded("train"), "held_out": loaded("held out"), "one": loaded("train", limit=1),
        **train_nodes("train", {"model": ["loader", 0], "preferences": ["train_sets", 0]},
                      COMMON | {"seed": seed} | changes),
        "save": node("D3POSaveRun", lora=["train", 1], run=run),
        "implicit": node("D3POImplicitAccuracy", model=["loader", 0], tuned=["train", 0],
                         preferences=["held_out", 0], draws=4, seed=0),
        "look": node("PreviewAny", source=["measure", 4]),
        **train_nodes("measure",
                      {"model": ["loader", 0], "preferences": ["one", 0], "held_out": ["held_out", 0],
                       "lora": ["train", 1]}, still | {"seed": seed}),
    }  # fmt: skip


class Cost(threading.Thread):
    """What a process takes while the block runs: the most memory, in bytes, and seconds of the processor."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.process, self.bytes, self.done = psutil.Process(pid), 0, threading.Event()
        self.seconds = -self._used()

    def _used(self):
        used = self.process.cpu_times()
        return used.user + used.system

    def run(self):
        while not self.done.wait(0.02):
            self.bytes = max(self.bytes, self.process.memory_info().rss)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()
        self.seconds += self._used()


def trial(host, prompt, dataset, name, changes, seed, before):
    """One training of one method: its figures."""
    run = f"bench {time.time_ns()}"
    graph = training(dataset, run, seed, {"method": name} | changes)
    with Cost(host.process.pid) as cost:
        host.run(
            {key: each for key, each in graph.items() if key not in ("measure", "look", "implicit")},
            timeout=1800,
        )
    outputs = host.run(graph, timeout=1800)["outputs"]
    held, implicit = (outputs[name]["figures"][0] for name in ("measure", "implicit"))
    gained = (measure(evaluate(host, prompt, EVALUATED, f"d3po/{run}.safetensors")) - before).mean()
    return {
        "accuracy": held[metrics.HELD_OUT_ACCURACY],
        "implicit": implicit[metrics.ACCURACY],
        "pairs": held[metrics.HELD_OUT_PAIRS],
        "gained": float(gained),
        "kl": held[metrics.HELD_OUT_KL],
        "seconds": cost.seconds,
        "peak": cost.bytes,
    }


def interval(values):
    """Mean and half its 95% interval over seeds (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, float("nan")
    return mean, stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5


def table(results):
    """Markdown, a row for each method: {name: [figures of each seed]}."""
    rows = [
        "| method | held-out implicit accuracy, steps | the same, images | brightness gained | KL spent "
        "| seconds | memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, trials in results.items():
        cells = [
            (interval([one[key] for one in trials]), scale, digits)
            for key, scale, digits in (("accuracy", 1, 3), ("implicit", 1, 3), ("gained", 1, 4), ("kl", 1, 2))
        ]
        told = [
            f"{scale * mean:.{digits}f} ± {scale * half:.{digits}f}" for (mean, half), scale, digits in cells
        ]
        seconds = statistics.fmean(one["seconds"] for one in trials)
        rows.append(f"| {name} | {' | '.join(told)} | {seconds:.0f} | {trials[0]['memory'] / 2**20:.0f} |")
    return "\n".join(rows)


def measured(todo, results, seeds, base):
    """Work off methods of the queue `todo` in a host of one's own."""
    with Host(make_base(base)) as host:
        prompt, dataset = to_api(load(WORKFLOW), host.object_info()), f"bench {time.time_ns()}"
        prompt[node_of(prompt, "D3POKSampler")]["inputs"] |= {"steps": STEPS, "cfg": CFG}
        host.run(recording(prompt, dataset), timeout=1800)
        before = measure(evaluate(host, prompt, EVALUATED))
        for name, changes in iter(todo.get, None):
            host.restart()  # so that memory which the last method left free is not taken for this one's
            evaluate(host, prompt, 1)
            resident = psutil.Process(host.process.pid).memory_info().rss
            trials = [trial(host, prompt, dataset, name, changes, seed, before) for seed in range(seeds)]
            results[name] = [trials[0] | {"memory": trials[0]["peak"] - resident}, *trials[1:]]
            print(table({name: results[name]}).splitlines()[-1], flush=True)


def main(seeds, only, write):
    os.environ["OMP_NUM_THREADS"] = "1"  # the model is so small that threads wait for one another
    todo, found = queue.SimpleQueue(), {}
    chosen = {name: changes for name, changes in METHODS.items() if only in name}
    for item in [*chosen.items(), *WORKERS * [None]]:
        todo.put(item)
    with ThreadPoolExecutor(WORKERS) as pool:
        for each in [
            pool.submit(measured, todo, found, seeds, BASE.with_name(f"bench {i}")) for i in range(WORKERS)
        ]:
            each.result()
    known = json.loads(OUT.read_text()) if only and OUT.exists() else {}
    results = {name: (known | found)[name] for name in METHODS if name in known | found}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(results, indent=1))
    if write:
        put(DOC, BEGIN, END, table(results))
