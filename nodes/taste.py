"""The picks so far as a judge of further candidates."""

from dataclasses import replace
from typing import NamedTuple

import comfy.utils
from comfy_api.latest import io

from ..d3po_core.candidates.preferences import Preferences
from ..d3po_core.dataset.annotators import JOININGS
from ..d3po_core.taste.features import Eye
from ..d3po_core.taste.head import best_over_worst, clearest, learned
from ..d3po_core.taste.liking import Tastes
from . import host
from .stored import DatasetType, ImageSet, preferences_in, told, version
from .train.report import as_data
from .train.rounds import require_same_model
from .types import CATEGORY, TASTE, PreferencesType, Trajectories

PER_PASS = 4  # candidates that go through the network together


class D3POTastePreference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POTastePreference",
            display_name="D3PO Taste Preference",
            category=CATEGORY,
            search_aliases=["taste", "auto preference", "reward model", "hero", "learn from few picks"],
            description=(
                "Learns your taste from your picks, and judges further candidates as you would, so that "
                "training has many times more to learn from. It sees images by the model's own features."
            ),
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, as the train step has it."),
                picks_input(),
                Trajectories.Input(
                    "trajectory",
                    tooltip="Further candidates that nobody has looked at, from another D3PO KSampler. More "
                    "prompts say more than more candidates of one.",
                ),
                earlier_input(),
            ],
            outputs=[
                PreferencesType.Output(
                    display_name="preferences",
                    is_output_list=True,
                    tooltip="Your picks, the earlier ones, and the further candidates as judged: wire to the "
                    "train step.",
                ),
                *learned_outputs(),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        return version(None)  # of all datasets, as the host does not tell which one a wire brings

    @classmethod
    def execute(cls, model, preferences, trajectory, dataset=(None,)):
        model = model[0]
        picks = picks_in(model, preferences, dataset[0])
        if not picks.judged:
            text = "There is no preference to learn a taste from yet"
            return io.NodeOutput(picks.all, 0.5, text, ui={"text": [text]})
        if any(isinstance(candidates, ImageSet) for candidates in trajectory):
            raise ValueError(
                "trajectory: these candidates are images alone, and this judge looks at recorded ones"
            )
        taste, seen, places = taste_of(model, picks, trajectory)
        own_picks, more = picks.all, []
        if taste.trusted:
            liking = every_look(model, picks, taste, places)
            own_picks = [replace(clearest(p), taste=liking) for p in picks.all]
            more = [
                Preferences(candidates, best_over_worst(taste.scores(own)), source=TASTE, taste=liking)
                for candidates, own in zip(trajectory, seen)
            ]
        text = told("\n".join([*report(taste, picks), judged_report(taste, len(trajectory))]), picks.left_out)
        return io.NodeOutput(
            [*own_picks, *more],
            accuracy(taste),
            text,
            ui={"text": [text], "figures": [as_data({"accuracy": accuracy(taste), "judged": len(more)})]},
        )


def picks_input():
    return PreferencesType.Input(
        "preferences", tooltip="Your picks: from D3PO Pair Preference or Load Preferences."
    )


def earlier_input():
    return DatasetType.Input(
        "dataset",
        optional=True,
        tooltip="Your earlier picks are learned from as well: all that this dataset holds under "
        "the annotator's name, of this base model. From D3PO Save to Dataset.",
    )


def learned_outputs():
    """What a node tells of the taste that it has learned."""
    return [
        io.Float.Output(
            display_name="accuracy",
            tooltip="How often it tells which of two candidates you preferred, of picks that it was "
            "not shown. 0.5 is chance.",
        ),
        io.String.Output(display_name="report", tooltip="What it has learned, in words."),
    ]


class Picks(NamedTuple):
    """all       Preferences, the earlier ones first
    judged    those of them in which something is preferred
    earlier   how many are from a dataset
    left_out  what is wrong with damaged ones
    """

    all: list
    judged: list
    earlier: int
    left_out: list


def picks_in(model, preferences, dataset):
    """The Picks to learn a taste from: preferences, and the earlier ones of a dataset."""
    left_out = []
    earlier = earlier_picks(model, preferences, dataset, left_out)
    every = [*earlier, *preferences]
    return Picks(every, [p for p in every if len(set(p.rewards.values())) > 1], len(earlier), left_out)


def taste_of(model, picks, further=()):
    """(the Taste that is learned from Picks, the features of each set of a trajectory besides, the places
    that all of these were seen at)."""
    sets, base = [p.candidates for p in picks.judged], host.fingerprint(model)
    require_same_model(model, base, sets)
    require_same_model(model, base, further, "trajectory")
    seen, places = look(model, [*sets, *further])
    taste = learned(seen[: len(sets)], [p.rewards for p in picks.judged])
    return taste, seen[len(sets) :], places


def every_look(model, picks, taste, places):
    """The Tastes of all looks, of which `taste_of` has learned the first."""
    sets, rewards = [p.candidates for p in picks.judged], [p.rewards for p in picks.judged]
    return Tastes.learned(taste, places, rewards, lambda number: look(model, sets, places, number)[0])


def earlier_picks(model, preferences, dataset, left_out):
    """Preferences that a dataset holds of its annotator and this base model, but for sets that are judged
    anew. `left_out` as each_whole has it."""
    if not dataset:
        return []
    new = {p.candidates.set_id for p in preferences}
    with dataset.open() as store:
        rows = store.sets(judged=True, annotator=dataset.annotator, model=host.fingerprint(model))
        rows = [row for row in rows if row.has_trajectory and row.id not in new]
        return preferences_in(dataset.name, store, rows, dataset.annotator, JOININGS[0], 0, left_out)


def look(model, sets, places=(), number=0):
    """(each set's features by an Eye's look of this number, the places that they were seen at). Given, those
    are looked at."""
    bar = comfy.utils.ProgressBar(len(sets))

    def work(session):
        eye = Eye(session.network, session.device, PER_PASS, places, number)
        seen = []
        for candidates in sets:
            images = host.finished(model, candidates)
            seen.append(eye.features(images, session.denoiser(images)))
            bar.update(1)
        return seen, eye.places

    return host.evaluate_inside(model, sets, work, PER_PASS)


def accuracy(taste):
    return taste.accuracy.share if taste.accuracy else 0.5


def report(taste, picks):
    candidates = sum(len(p.rewards) for p in picks.judged)
    before = f", {picks.earlier} of them judged earlier" if picks.earlier else ""
    yield f"learned from {candidates} judged candidates in {len(picks.judged)} sets{before}"
    if taste.accuracy is None:
        yield "One set cannot tell whether a taste holds for another: judge more sets"
    else:
        low, high = taste.accuracy.low, taste.accuracy.high
        yield (
            f"tells the preferred of two unseen candidates in {taste.accuracy.share:.0%} of cases (95% "
            f"interval {low:.0%} to {high:.0%})"
        )


def judged_report(taste, further):
    if taste.trusted:
        return f"{further} further sets are judged by it"
    return (
        "That is not beyond chance, so further candidates were left unjudged and training gets your "
        "picks alone. More picks, or clearer ones, make it surer"
    )
