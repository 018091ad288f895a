"""One simulated artist's evenings: rounds of candidates, answers and training, and what they end up with."""

import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from d3po_core.candidates.judgement import Judgement
from d3po_core.candidates.preferences import Preferences
from d3po_core.taste.features import Eye
from d3po_core.taste.head import best_over_worst, clearest, learned
from d3po_core.taste.liking import Tastes
from d3po_core.taste.movement import Pictures, View, carried_on, held_back, length
from d3po_core.training import metrics
from d3po_core.training.loop import Example, Trainer
from d3po_core.training.methods import METHODS, RECORDED
from d3po_core.training.methods import TASTE as OF_TASTE
from d3po_core.training.presets import RECOMMENDED, resolved, sized
from d3po_core.training.step_settings import GUIDANCE
from tools.lab.artists import Artist, chance
from tools.lab.namer import NAMES, WORDS
from tools.lab.studio import BASE
from tools.lab.tastes import TASTES
from tools.model_pictures import caption

STEPS, CFG = 10, 2.0  # of sampling, as in the example workflows
SEEN, HELD_OUT, SEEDS = 4, 8, 6  # prompts that were trained on and that were not, and images of each
FURTHER = 8  # candidates of a set that nobody looks at
TASTE = "taste"  # source of preferences that nobody looked at
PROMPTS = [(name, word) for name in NAMES for word in WORDS]


@dataclass(frozen=True)
class Plan:
    """taste, artist  who judges
    prompts     how many different prompts the artist works on
    sets, candidates, rounds  sets a round and candidates a set
    strength    one of training/presets.py
    settings    what the train step is told besides, by names of training/settings.py
    replay      each round trains on every set so far, not on its own alone
    unjudged    sets a round that nobody looks at, judged by the taste learned from all picks so far
    others      how many further prompts these come from, besides the artist's own
    measured    pictures of each prompt that the LoRA is measured by
    only_last   whether it is measured after the last round alone
    """

    taste: str
    artist: Artist = Artist()
    prompts: int = 12
    sets: int = 12
    candidates: int = 4
    rounds: int = 1
    strength: str = RECOMMENDED
    settings: dict = field(default_factory=dict)
    replay: bool = True
    unjudged: int = 24
    others: int = 12
    measured: int = SEEDS
    only_last: bool = False
    seed: int = 0


def interval(values):
    """Half of a mean's 95% interval, by Student's t; None for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def kept(now, base):
    """How many are right, as a share of the base's own."""
    return float(now.sum() / max(1, base.sum()))


def of_round(round_):
    """What made the candidates of a round."""
    return f"round {round_}" if round_ else BASE


class Measure:
    """What became of held-out seeds, of prompts that were trained on and of others, by the base's."""

    def __init__(self, studio, namer, prompts, taste, each=SEEDS):
        self.studio, self.namer, self.taste, self.each = studio, namer, TASTES[taste], each
        self.prompts = [prompt for prompt in prompts for _ in range(each)]
        self.base = self.look(BASE)
        varied = self.base["scores"].reshape(-1, each).std(1, ddof=1)
        self.spread = float(np.sqrt(np.mean(varied**2)))

    def look(self, policy):
        seeds = [90_000 + i for i in range(len(self.prompts))]
        prompts = [caption(*p) for p in self.prompts]
        recorded = self.studio.record(prompts, seeds, 1, STEPS, CFG, policy=policy)
        images = self.studio.pictures(torch.cat([one.states[-1] for one in recorded]))
        flat, each = images.reshape(-1, self.each, images[0].size), self.each
        apart = np.linalg.norm(flat[:, :, None] - flat[:, None], axis=-1)
        return {
            "images": images,
            "scores": self.taste(images),
            "objects": self.namer.names(images) == [NAMES.index(name) for name, _ in self.prompts],
            "grounds": self.namer.words(images) == [WORDS.index(word) for _, word in self.prompts],
            "spread": apart.sum((1, 2)) / (each * (each - 1)),
        }

    def figures(self):
        now, base = self.look("trained"), self.base
        gains = (now["scores"] - base["scores"]) / self.spread
        seen = np.arange(len(gains)) < SEEN * self.each
        by_prompt = gains[~seen].reshape(-1, self.each).mean(1)
        return now["images"], {
            "gain": float(by_prompt.mean()),
            "gain half": interval(by_prompt.tolist()),
            "gain seen": float(gains[seen].mean()),
            "objects kept": kept(now["objects"], base["objects"]),
            "objects kept seen": kept(now["objects"][seen], base["objects"][seen]),
            "grounds kept": kept(now["grounds"], base["grounds"]),
            "spread kept": float((now["spread"] / base["spread"]).mean()),
        }


class Evenings:
    """A session of rounds; `run` yields a row after each."""

    def __init__(self, studio, namer, plan):
        self.studio, self.namer, self.plan = studio, namer, plan
        order = chance("prompts", plan.seed).sample(PROMPTS, len(PROMPTS))
        self.trained, order = order[: plan.prompts], order[plan.prompts :]
        self.further, others = order[HELD_OUT : HELD_OUT + plan.others], order[:HELD_OUT]
        seen = (self.trained * SEEN)[:SEEN]
        self.measure = Measure(studio, namer, [*seen, *others], plan.taste, plan.measured)
        self.judged, self.labels, self.answers, self._seen = [], 0, 0, {}
        self.eye = Eye(studio.network, per_pass=FURTHER)

    def settings(self, sets):
        plan = self.plan
        return resolved({"seed": plan.seed} | sized(plan.strength, sets, self.studio.flow) | plan.settings)

    def run(self):
        settings, self.step = self.settings(1)
        self.method = METHODS[settings.method]
        shape = {
            name: getattr(self.step, name) for name in ("rank", "alpha", "targets", "adapter", "dropout")
        }
        with self.studio.adapter(seed=self.plan.seed, **shape) as adapter:
            trainer, seconds = Trainer(adapter, settings, "base"), 0.0
            for round_ in range(self.plan.rounds):
                began = time.monotonic()
                new = self.candidates(round_)
                picks = self.judged if self.plan.replay else new
                taste = self.taste(adapter)
                further = self.by_taste(round_, adapter, taste) if taste else []
                sets = [*(map(clearest, picks) if further else picks), *further]
                if taste and self.method.of == OF_TASTE:
                    with adapter.off():
                        liking = self.every_look(taste)
                    sets = [replace(p, taste=liking) for p in sets]
                looked = time.monotonic()
                last = self.learn(trainer, sets)
                trained = time.monotonic()
                seconds += trained - began
                if self.plan.only_last and round_ + 1 < self.plan.rounds:
                    continue
                with adapter.acting("trained") if settings.ema else nullcontext():
                    images, figures = self.measure.figures()
                row = {
                    "round": round_ + 1,
                    "labels": self.labels,
                    "answers": self.answers,
                    "updates": trainer.step,
                    "KL": last.get(metrics.KL),
                    "moved": last.get(metrics.MOVED),
                    "left": last.get("left"),
                    "told": self.told,
                    "shift": last.get(metrics.SHIFT),
                    "winner": last.get(metrics.WINNER),
                    "seconds": seconds,
                    "seconds sampling": looked - began,
                    "seconds training": trained - looked,
                }
                yield images, row | figures

    def learn(self, trainer, sets):
        """A round of training: the last update's metrics; {} where there is nothing to learn from."""
        sets = [p for p in sets if self.method.taking_part(p)]
        if not sets:
            return {}
        trainer.settings, _ = self.settings(len(sets))
        made = trainer.fit([self.example(p) for p in sets])
        return made[-1] | self.held(trainer, sets)

    def candidates(self, round_):
        """The round's new Preferences."""
        plan, rng = self.plan, chance("round", self.plan.seed, round_)
        prompts = [self.trained[(round_ * plan.sets + i) % len(self.trained)] for i in range(plan.sets)]
        seeds = [rng.randrange(2**32) for _ in prompts]
        prompts = [caption(*p) for p in prompts]
        recorded = self.studio.record(
            prompts,
            seeds,
            plan.candidates,
            STEPS,
            CFG,
            policy=of_round(round_),
            first=self.first(prompts, rng),
        )
        new = self.judge(recorded, rng)
        self.judged += new
        return new

    def first(self, prompts, rng):
        """First noises of each prompt's candidates, [candidates, C, H, W]; None: the same for all of them."""
        return None

    def judge(self, recorded, rng):
        """Preferences of recorded sets, as the artist answers."""
        plan, judged = self.plan, []
        for trajectory in recorded:
            said, answers = plan.artist.judge(self.scores(trajectory), rng)
            parsed = Judgement.parse(said, plan.candidates)
            of = self.as_learned(trajectory)
            judged.append(Preferences(of, parsed.pairs, "artist", parsed.scores, parsed.liked))
            self.labels, self.answers = self.labels + plan.candidates, self.answers + answers
        return judged

    def scores(self, trajectory):
        """How much the artist likes each candidate."""
        return TASTES[self.plan.taste](self.studio.pictures(trajectory.states[-1]))

    def taste(self, adapter):
        """The Taste learned from all picks so far, where it is wanted and to be trusted."""
        self.told, judged = None, self.telling()
        if not judged or not (self.plan.unjudged or self.method.of == OF_TASTE):
            return None
        with adapter.off():
            taste = learned([self.seen(p.candidates) for p in judged], [p.rewards for p in judged])
        self.told = taste.accuracy.share if taste.accuracy else None
        return taste if taste.trusted else None

    def telling(self):
        """The picks so far that prefer anything."""
        return [p for p in self.judged if len(set(p.rewards.values())) > 1]

    def every_look(self, taste):
        """The Tastes of all looks."""
        judged, places = self.telling(), self.eye.places

        def seen(number):
            eye = Eye(self.studio.network, per_pass=FURTHER, places=places, look=number)
            return [self.features(p.candidates, eye) for p in judged]

        return Tastes.learned(taste, places, [p.rewards for p in judged], seen)

    def by_taste(self, round_, adapter, taste):
        """Further sets, judged as the picks so far were."""
        plan, rng = self.plan, chance("further", self.plan.seed, round_)
        pool = [*self.trained, *self.further]
        prompts = [caption(*pool[(round_ * plan.unjudged + i) % len(pool)]) for i in range(plan.unjudged)]
        if not prompts:
            return []
        seeds = [rng.randrange(2**32) for _ in prompts]
        recorded = self.studio.record(prompts, seeds, FURTHER, STEPS, CFG, policy=of_round(round_))
        with adapter.off():
            return [
                Preferences(self.as_learned(one), best_over_worst(taste.scores(self.seen(one))), TASTE)
                for one in recorded
            ]

    def seen(self, candidates):
        """Their features; kept, as they never change."""
        if id(candidates) not in self._seen:
            self._seen[id(candidates)] = candidates, self.features(candidates, self.eye)
        return self._seen[id(candidates)][1]

    def features(self, candidates, eye):
        images = self.studio.finished(candidates)
        return eye.features(images, self.studio.denoiser(images.settings["prompt"]))

    def as_learned(self, trajectory):
        return trajectory if self.step.learn_from == RECORDED else self.studio.finished(trajectory)

    def held(self, trainer, sets):
        """What the train step does at the end of a round: hold pictures on the leash."""
        if not trainer.settings.leash:
            return {"left": 1.0}
        views = []
        for p in sets:
            images = self.studio.finished(p.candidates)
            prompt = images.settings["prompt"]
            views.append(View(images, self.studio.denoiser(prompt, CFG), self.studio.denoiser(prompt)))
        pictures = Pictures(trainer, views, per_pass=12)
        hold = carried_on if any(p.source == TASTE or p.taste for p in sets) else held_back
        moved, left = hold(trainer, pictures.moved, length(trainer.settings.leash, self.labels))
        return {metrics.MOVED: moved, "left": left}

    def example(self, preferences):
        held = preferences.candidates
        guided = held.recorded and self.step.guidance == GUIDANCE[0]
        denoise = self.studio.denoiser(held.settings["prompt"], CFG if guided else 1.0)
        return Example(preferences, denoise, self.studio.denoiser(""))
