"""What two rounds of each example workflow that trains leave of a model, by picks at random and consistent.

A simulated artist ranks the candidates of each round by chance, or by brightness, which nearly every layer
can push alike and which therefore spoils a model soonest. Then the stock nodes sample 24 held-out seeds of a
prompt that was trained on and of one that was not, with the LoRA and without. An object is named by its
nearest neighbour in pixels among the base model's own pictures of many objects, each picture's own ground
taken off and all of one contrast. So a brighter picture, which is what was asked for, is still that object's.
(By that the base's own held-out cats and mushrooms are all named right; where contrast counts, a pale
mushroom is a heart.) The result goes to experiment_output/templates.json, and a sheet of pictures for each
trial beside it.
"""

import argparse
import hashlib
import json
import os
import random
import re
import statistics
import sys
import time

import numpy as np

from d3po_core.candidates import objectives
from d3po_core.training import metrics
from tools import sheet
from tools.demo import node_of
from tools.host import BASE, ROOT, Host, make_base
from tools.stock import stock_images
from tools.workflow import load, to_api

OUT = ROOT / "experiment_output"
ROUNDS, SEEDS, REFERENCES = 2, 24, 6
FIRST_SEED, REFERENCE_SEED = 100, 900
BORDER = 4  # pixels at the edge that no object touches often
OBJECTS = (
    "cat",
    "dog",
    "pig",
    "fox",
    "koala",
    "panda",
    "frog",
    "penguin",
    "chick",
    "house",
    "mushroom",
    "gift",
    "rocket",
    "heart",
    "cactus",
    "tulip",
    "fish",
    "strawberry",
)
ARTISTS = ("random", "brighter")
JUDGES = ("D3POPairPreference", "D3POObjectivePreference", "D3POImplicitPreference")
# template -> (a prompt that it trains on, one that it does not)
TRAINED = {
    "d3po_picker_loop": ("cat on a blue", "mushroom on a green"),
    "d3po_thumbs": ("house on a green", "cat on a blue"),
    "d3po_objective_loop": ("cat on a blue", "mushroom on a red"),
    "d3po_taste_loop": ("cat on a blue", "mushroom on a red"),
    "d3po_implicit_judge": ("cat on a blue", "mushroom on a red"),
    "d3po_several_annotators": ("strawberry on a pink", "cat on a blue"),
    "d3po_train_on_pairs": ("cat on a blue", "mushroom on a red"),
}


def prompt_of(words):
    return f"a {words} background"


def scores_of(artist, images, seed):
    """How much an artist likes each image [N, H, W, 3]."""
    if artist == "random":
        rng = random.Random(seed)
        return [rng.random() for _ in images]
    return objectives.brightness(images).tolist()


def judgement_of(template, scores):
    """Scores in the form in which the template's artist answers."""
    ranking = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    if template != "d3po_thumbs":
        return {"ranking": ranking}
    middle = len(ranking) // 2
    return {"good": sorted(ranking[:middle]), "bad": sorted(ranking[middle:])}


# --- the rounds ---


def named_run(prompt, run):
    """Save the template's trained LoRA under a name, and go on from there."""
    save = prompt[node_of(prompt, "D3POSaveRun")]["inputs"]
    source = prompt[node_of(prompt, "D3POTrainStep")]["inputs"]["lora"][0]
    prompt[source]["inputs"]["run"] = run
    if save.get("run"):
        save["run"] = run


def with_picker(prompt):
    """The template judged by picks, whatever its judge was."""
    (judge,) = [node for node in prompt.values() if node["class_type"] in JUDGES]
    kept = {
        name: judge["inputs"][name] for name in ("trajectory", "images", "dataset") if name in judge["inputs"]
    }
    judge |= {"class_type": "D3POPairPreference", "inputs": kept | {"picks": ""}}
    return judge["inputs"]


def pick(host, prompt, template, artist, seed):
    """Run a workflow for its candidates, then with an artist's picks of them. The second run's outputs."""
    picks = with_picker(prompt)
    shown = host.run(prompt, timeout=1800)["outputs"][node_of(prompt, "D3POPairPreference")]["d3po"]
    sets = {}
    for number, told in enumerate(shown):
        images = sheet.as_batch([host.image(image) for image in told["images"]])
        sets[told["set"]] = judgement_of(template, scores_of(artist, images, 1000 * seed + number))
    picks["picks"] = json.dumps({"version": 1, "sets": sets})
    return host.run(prompt, timeout=1800)["outputs"]


def loop(host, template, artist, run, seed):
    """Two rounds of a template that records, judges and trains in one go: the train step's word on each."""
    told = []
    for round_ in range(ROUNDS):
        prompt = to_api(load(ROOT / "example_workflows" / f"{template}.json"), host.object_info())
        named_run(prompt, run)
        for node in prompt.values():
            if node["class_type"] == "D3POPrompts":  # of two, each has seeds of its own
                node["inputs"]["seed"] = 1000 * node["inputs"]["seed"] + 10 * seed + round_
            elif node["class_type"] == "D3POSaveToDataset":
                node["inputs"]["dataset"] = run
            elif node["class_type"] == "D3POKSampler" and not isinstance(node["inputs"]["seed"], list):
                node["inputs"]["seed"] += 10 * seed
        outputs = pick(host, prompt, template, artist, 10 * seed + round_)
        told.append(outputs[node_of(prompt, "D3POTrainStep")])
    return told


def from_dataset(host, template, artist, run, seed):
    """Two rounds of recording, judging and training by two templates over one dataset."""
    told = []
    for round_ in range(ROUNDS):
        record = to_api(
            load(ROOT / "example_workflows" / "d3po_record_and_judge_later.json"), host.object_info()
        )
        record[node_of(record, "D3POPrompts")]["inputs"]["seed"] = 10 * seed + round_
        keep, load_sets = (node_of(record, kind) for kind in ("D3POSaveToDataset", "D3POLoadSets"))
        record[keep]["inputs"]["dataset"] = record[load_sets]["inputs"]["dataset"] = run
        host.run(
            {
                key: node
                for key, node in record.items()
                if key == keep
                or node["class_type"]
                in (
                    "CheckpointLoaderSimple",
                    "D3POPrompts",
                    "CLIPTextEncode",
                    "EmptyLatentImage",
                    "D3POKSampler",
                    "VAEDecode",
                )
            },
            timeout=1800,
        )
        pick(
            host,
            {
                key: node
                for key, node in record.items()
                if node["class_type"] in ("D3POLoadSets", "D3POPairPreference")
            },
            template,
            artist,
            10 * seed + round_,
        )
        train = to_api(load(ROOT / "example_workflows" / f"{template}.json"), host.object_info())
        named_run(train, run)
        train = {
            key: node
            for key, node in train.items()
            if node["class_type"] not in ("D3POLoadSets", "D3POPairPreference", "D3PODatasetStatistics")
        }
        for node in train.values():
            node["inputs"] |= {"dataset": run} if "dataset" in node["inputs"] else {}
        told.append(host.run(train, timeout=1800)["outputs"][node_of(train, "D3POTrainStep")])
    return told


def from_pairs(host, template, artist, run, seed):
    """A folder of pairs that the base model made, and two rounds of training on it."""
    prompts = [
        prompt_of(f"{name} on a {colour}")
        for name in ("cat", "fox", "pig", "koala", "tulip", "rocket")
        for colour in ("blue", "yellow")
    ]
    for number, text in enumerate(prompts):
        images = stock_images(host, [text], [500 + 100 * seed + number], batch=2)
        scores = scores_of(artist, sheet.as_batch(images), 100 * seed + number)
        for side, image in zip("wl", sorted(range(2), key=scores.__getitem__, reverse=True)):
            folder = host.base / "input" / run / side
            folder.mkdir(parents=True, exist_ok=True)
            images[image].save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(text)
    told = []
    for _ in range(ROUNDS):
        prompt = to_api(load(ROOT / "example_workflows" / f"{template}.json"), host.object_info())
        named_run(prompt, run)
        prompt[node_of(prompt, "D3POImportPreferences")]["inputs"] |= {"source": run, "dataset": run}
        told.append(host.run(prompt, timeout=1800)["outputs"][node_of(prompt, "D3POTrainStep")])
    return told


ROUNDS_OF = {"d3po_several_annotators": from_dataset, "d3po_train_on_pairs": from_pairs}


# --- what is left ---


class Base:
    """Pictures of the model without a LoRA, each made once."""

    def __init__(self, host):
        self.host, self.sampled, self.known = host, {}, {}

    def pictures(self, words):
        """Of the held-out seeds of a prompt, PIL."""
        if words not in self.sampled:
            self.sampled[words] = sample(self.host, words)
        return self.sampled[words]

    def of_objects(self, ground):
        """REFERENCES of each object on this ground, [objects * REFERENCES, H, W, 3]."""
        if ground not in self.known:
            texts = [prompt_of(f"{name} on a {ground}") for name in OBJECTS]
            made = stock_images(self.host, texts, [REFERENCE_SEED] * len(texts), batch=REFERENCES)
            self.known[ground] = sheet.as_batch(made)
        return self.known[ground]

    def named_right(self, words, images):
        """How many of these images of a prompt, [N, H, W, 3], are nearest to its object."""
        name, ground = re.fullmatch(r"(\w+) on an? (\w+)", words).groups()
        images, known = shapes_of(images), shapes_of(self.of_objects(ground))
        distance = np.square(images[:, None] - known[None]).sum((2, 3, 4))
        return sum(OBJECTS[i // REFERENCES] == name for i in distance.argmin(1))


def ground_of(images):
    """Median colour of the border, [N, 3], of images [N, H, W, 3]."""
    inner = np.zeros(images.shape[1:3], bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.median(images[:, ~inner], axis=1)


def shapes_of(images):
    """Images without their ground, and of one contrast."""
    shapes = images - ground_of(images)[:, None, None]
    return shapes / np.sqrt(np.square(shapes).sum((1, 2, 3), keepdims=True))


def sample(host, words, lora=None):
    return stock_images(host, [prompt_of(words)], [FIRST_SEED], lora=lora, batch=SEEDS)


def trial(host, base, template, artist, seed):
    """One artist's two rounds of one template: what is left of its two prompts, and a picture of it."""
    run, began = f"{template} {artist} {time.time_ns()}", time.monotonic()
    outputs = ROUNDS_OF.get(template, loop)(host, template, artist, run, seed)
    seconds, row, pictures = time.monotonic() - began, {}, ([], [])
    for kind, words in zip(("trained", "untrained"), TRAINED[template]):
        before, after = base.pictures(words), sample(host, words, f"d3po/{run}.safetensors")
        old, new = sheet.as_batch(before), sheet.as_batch(after)
        named = [base.named_right(words, images) for images in (old, new)]
        row[kind] = {
            "prompt": prompt_of(words),
            "named before": named[0],
            "named after": named[1],
            "ground moved": float(np.linalg.norm(ground_of(new) - ground_of(old), axis=1).mean()),
            "brightness": float((objectives.brightness(new) - objectives.brightness(old)).mean()),
        }
        pictures[0].extend(before)
        pictures[1].extend(after)
    sheet.before_after(*pictures, OUT / f"{template} {artist} {seed}.png", columns=SEEDS)
    rounds = [output["figures"][0] | {"first line": output["text"][0].splitlines()[0]} for output in outputs]
    return row | {"template": template, "artist": artist, "seed": seed, "seconds": seconds, "rounds": rounds}


def kept(row):
    """The smaller of the two prompts' shares of objects still named right."""
    return min(row[kind]["named after"] / row[kind]["named before"] for kind in ("trained", "untrained"))


def stamp(template, artist, seed):
    """Names a trial by all that it depends on here: the workflows as they are, the artist and the seed."""
    files = [
        ROOT / "example_workflows" / f"{name}.json" for name in (template, "d3po_record_and_judge_later")
    ]
    content = b"".join(file.read_bytes() for file in files) + f"{artist} {seed} shapes".encode()
    return hashlib.sha256(content).hexdigest()[:16]


def told(row):
    sides = (
        f"{kind} {row[kind]['named before']} -> {row[kind]['named after']} of {SEEDS}, brightness "
        f"{row[kind]['brightness']:+.3f}"
        for kind in ("trained", "untrained")
    )
    return (
        f"{row['template']}, {row['artist']}: {'; '.join(sides)}; "
        f"KL {row['rounds'][-1].get(metrics.KL) or 0:.3g}; {row['seconds']:.0f} s"
    )


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="only templates with this in their name")
    given = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    OUT.mkdir(exist_ok=True)
    trials = [
        (template, artist, seed)
        for template in TRAINED
        if given.only in template
        for artist in ARTISTS
        for seed in range(given.seeds)
    ]
    results = OUT / "templates.json"  # what is there and unchanged is not measured again
    rows = json.loads(results.read_text()) if results.exists() else {}
    with Host(make_base(BASE)) as host:
        base = Base(host)
        for trial_ in trials:
            name = stamp(*trial_)
            if name not in rows:
                rows[name] = trial(host, base, *trial_)
                results.write_text(json.dumps(rows, indent=1))
            print(told(rows[name]), flush=True)
    shares = [kept(rows[stamp(*trial_)]) for trial_ in trials]
    print(
        f"objects still named right: {min(shares):.2f} of the base's at least, "
        f"{statistics.fmean(shares):.2f} on average"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
