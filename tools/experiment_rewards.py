"""What LoRAs gain that follow a scorer's gradient, and what it costs the pictures: each method, on prompts
and seeds that were not trained on.

A row is a method, an objective and a seed: a round of D3PO Reward Train Step by its defaults, under its
guard. Gain and what is kept are those of the experiment `artists`; compressibility is measured by the JPEG's
size itself, and trained by the soft one. Seconds are the processor's. Rows go to
experiment_output/rewards.json, and a sheet of pictures before and after beside it; what is there already is
not measured again.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image

from d3po_core.candidates import objectives
from d3po_core.candidates.images import CleanCandidates
from d3po_core.candidates.scorers import Scorer
from d3po_core.taste.guard import LEASH, LOOK_EVERY, Guard
from d3po_core.training import metrics
from d3po_core.training.rewards import METHODS, SETTINGS, SHAPE, Recipe, RewardTrainer, Source
from tools import sheet
from tools.experiment_artists import OUT, laboratory
from tools.lab.artists import chance
from tools.lab.results import KEPT
from tools.lab.session import CFG, HELD_OUT, PROMPTS, SEEDS, SEEN, STEPS, Measure, interval
from tools.lab.studio import LATENT
from tools.model_pictures import caption

TRAINED = 12  # prompts
# by the names of lab/tastes.py
SCORERS = {
    "bright": objectives.brightness,
    "compressible": lambda images: -objectives.soft_jpeg_size(images),
}
FIGURES = ("gain", "gain seen", *KEPT, "moved", "updates", "seconds")


def sources(studio, prompts):
    """What is sampled of these prompts, as the node makes it."""
    for prompt in map(lambda own: caption(*own), prompts):
        blank = torch.zeros(1, *LATENT)
        candidates = CleanCandidates(blank, studio.levels, studio.prediction, prompt, studio.name)
        yield Source(candidates, studio.denoiser(prompt, CFG), studio.denoiser(prompt), prompt)


def decoder(studio):
    """Images with gradients of latents in the model's space, as the host's VAE makes them."""
    vae = studio.vae.first_stage_model.requires_grad_(False)

    def decode(latents):
        images = vae.decode(studio.model.process_latent_out(latents))
        return studio.vae.process_output(images).float().movedim(1, -1)

    return decode


def session(studio, namer, objective, recipe, seed, measured=SEEDS):
    """(pictures before, pictures after, row)."""
    order = chance("rewards", seed).sample(PROMPTS, len(PROMPTS))
    prompts, others = order[:TRAINED], order[TRAINED:][:HELD_OUT]
    measure = Measure(studio, namer, [*prompts[:SEEN], *others], objective, measured)
    scorer = Scorer(objective, lambda images, prompt: SCORERS[objective](images), differentiable=True)
    with studio.adapter(seed=seed, **SHAPE) as adapter:
        began = time.process_time()
        settings, of = replace(SETTINGS, seed=seed), list(sources(studio, prompts))
        trainer = RewardTrainer(adapter, settings, recipe, scorer, decoder(studio), studio.sigmas(STEPS))
        guard = Guard(trainer, of, LEASH)
        trainer.usual = guard.usual
        history = trainer.fit(of, stop=guard.stop, look=guard.look, look_every=LOOK_EVERY)
        told, seconds = guard.settle(history), time.process_time() - began
        images, figures = measure.figures()
    row = {"objective": objective, "seed": seed, "told": told, "updates": len(history), "seconds": seconds}
    row |= {"moved": history[-1][metrics.MOVED], "history": history}
    return measure.base["images"], images, asdict(recipe) | row | figures


def told(row):
    return f"{row['method']}, {row['objective']}, seed {row['seed']}: " + ", ".join(
        f"{name} {row[name]:.2f}" for name in FIGURES
    )


def summary(rows):
    """Means over seeds, with 95% intervals: over seeds, or where there is one alone over its prompts."""
    lines = []
    for method, objective in dict.fromkeys((row["method"], row["objective"]) for row in rows):
        own = [row for row in rows if (row["method"], row["objective"]) == (method, objective)]
        half = interval([row["gain"] for row in own]) or own[0]["gain half"]
        means = {name: statistics.fmean(row[name] for row in own) for name in FIGURES}
        means = ", ".join(
            f"{name} {mean:.2f}" + (f" ± {half:.2f}" if name == "gain" and half else "")
            for name, mean in means.items()
        )
        lines.append(f"{method}, {objective}: {means}")
    return "\n".join(lines)


def shown(before, after, path, each):
    """A sheet of the held-out pictures, the same noise above and below."""
    pictures = [
        [Image.fromarray((image * 255).round().astype("uint8")) for image in images[SEEN * each :]]
        for images in (before, after)
    ]
    sheet.before_after(*pictures, path, columns=max(1, len(pictures[0]) // 2))


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=METHODS, action="append", help="default: all")
    parser.add_argument("--objective", choices=SCORERS, action="append", help="default: all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--measured", type=int, default=SEEDS, help="pictures of each prompt")
    parser.add_argument("--smoke", action="store_true", help="the least of everything, to see that it runs")
    parser.add_argument("--out", type=Path, default=OUT / "rewards.json")
    given = parser.parse_args(arguments)
    rows = json.loads(given.out.read_text()) if given.out.exists() else {}
    rooms = laboratory(given.out, given.smoke)
    for seed in range(given.seeds):
        for objective in given.objective or SCORERS:
            for method in given.method or METHODS:
                recipe = Recipe(method, **dict(updates=2, pictures=1) if given.smoke else {})
                name = f"{objective} {seed} {given.measured} {asdict(recipe)}"
                if name in rows:
                    continue
                before, after, rows[name] = session(*rooms(), objective, recipe, seed, given.measured)
                print(told(rows[name]), flush=True)
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps(rows, indent=1))
                picture = given.out.with_name(f"rewards_{method}_{objective}_{seed}.png")
                shown(before, after, picture, given.measured)
    print(summary(list(rows.values())))
