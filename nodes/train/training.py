"""A round of training inside the host's model: judged sets to a LoRA's weights."""

from dataclasses import replace
from typing import NamedTuple

import comfy.utils
import torch

from ...d3po_core.runs.looks import Look
from ...d3po_core.runs.tensorboard import Events
from ...d3po_core.taste.movement import ENOUGH, Pictures, View, carried_on, held_back, length
from ...d3po_core.training import loop, metrics, monitor
from ...d3po_core.training.adapter import Adapter
from ...d3po_core.training.checkpointing import AUTOMATIC
from ...d3po_core.training.methods import RECORDED
from ...d3po_core.training.reference import weights_of
from .. import host
from ..host.conditioning import AS_RECORDED
from ..library import events_folder
from ..together import ranks
from .agreement import require_repeatable, sampled_otherwise
from .live import LOOKING, learning
from .looks import Looks
from .results import went_on
from .schema import RECORDED_NOISE

PER_PASS = 4  # pictures that go through the network together


class Outcome(NamedTuple):
    """Of a train step: the LoRA and the state to go on from; the metrics of the updates that led there, and
    of all that were made; what there is to tell and to warn of, in lines; why training ended before its last
    update, "" where it did not; the pictures that the page is told of, or None, and as the run keeps them."""

    weights: dict
    tensors: dict
    step: int
    history: list
    made: list
    told: list
    warned: list
    stopped: str
    pictures: dict | None = None
    look: Look | None = None


class Leash(NamedTuple):
    """How far pictures may move: the judged sets whose pictures are looked at, as images alone, a leash's
    whole length (0: none), how many candidates of the run somebody looked at, and whether what they like
    holds for others too."""

    sets: list
    whole: float
    labels: int
    taste: bool


class Policies(NamedTuple):
    """Names of the weights at hand, each with what else is on the model, and which of them this network can
    be trusted with.

    base   the base model's; start: of the LoRA as it is when training begins
    exact  whether a LoRA on this network gives what it gave while sampling: merged into half-precision
           weights it was rounded
    guidance_kept  whether the network is trained with the guidance of the recordings
    """

    base: str
    start: str
    exact: bool
    guidance_kept: bool

    @property
    def beside(self):
        """What else than weights is on the model; "" for nothing."""
        return self.base.partition(" ")[2]

    def known(self, name):
        """A policy's name where its recordings are what this network gives; else None."""
        return name if self.guidance_kept and (name == self.base or self.exact) else None

    def is_own_sampler(self, name):
        """Whether a policy's recordings tell what it gave (Example.own_sampler)."""
        return name != self.start and self.known(name) is not None and name.partition(" ")[2] == self.beside


def train(session, plan, start, before, preferences, held_out, policy, progress, leash, workflow, wanted):
    """Train a LoRA on the session's network, which stays as it is: an Outcome. policy names the base model;
    before is earlier history whose KL is to the same reference; workflow's page is told, with the pictures
    that are Wanted (looks.py; None: none)."""
    _, space, beside = policy.partition(" ")
    began = weights_of(start.policy) + space + beside if start.step or start.initial else policy
    policies = Policies(policy, began, session.dtype == torch.float32, plan.guidance is None)
    if beside:
        require_repeatable(session, preferences[0].candidates, plan.guidance)
    adapter = Adapter(
        session.network, seed=plan.settings.seed, device=session.device, dropout=plan.dropout, **plan.shape
    )
    try:
        if start.initial:  # before the trainer, whose reference may be the round's start
            adapter.begin_from(start.initial)
        trainer = _trainer(session, plan, adapter, policies)
        if start.step:
            trainer.load_state(start.tensors, start.step)
        examples, unseen = (
            [_example(session, p, plan.guidance, policies) for p in judged]
            for judged in (preferences, held_out)
        )
        views = [View(s, session.denoiser(s, AS_RECORDED), session.denoiser(s)) for s in leash.sets]
        with learning(workflow, plan.settings.leash) as live:
            looks = wanted and Looks(session, trainer, views, wanted, live)
            if looks:
                looks.begin()
            fit = (plan, start, before, examples, unseen, progress, live, looks)
            made, resumed, lines, stopped = _fit(trainer, *fit)
            history = progress.back_to_best(trainer, made)
            if len(history) < len(made):
                lines.append(
                    f"Went back to update {len(history)} of this round, which ranks held_out best: "
                    "the figures above and the LoRA are of that"
                )
            lines += _fitted(trainer.passes, plan.settings)
            if leash.whole or looks:
                live.tell(LOOKING)
            pictures = leash.whole and Pictures(trainer, views, trainer.passes.per_pass or PER_PASS)
            if pictures:
                ended = len(history) == trainer.updates_in(examples)
                onward = ended and leash.taste and not plan.stop_kl
                lines += _held(pictures, history, leash, carried_on if onward else held_back)
            if looks:
                lines += looks.end(pictures)
        if plan.patience and not monitor.best_update(made):
            lines.append("Patience had nothing to go by: held_out has no strict preference")
        unlike = sampled_otherwise([*preferences, *held_out], policy, trainer, plan.guidance)
        shown = (live.pictures, looks and looks.last)
        found = (history, made, lines, unlike, stopped, *shown)
        return Outcome(trainer.trained(), *trainer.state(), *found)
    finally:
        adapter.eject()


def _trainer(session, plan, adapter, policies):
    against = policies.start if plan.settings.reference == "round start" else policies.base
    return loop.Trainer(
        adapter,
        plan.settings,
        policies.known(against),
        session.device,
        loss_scale=2.0**16 if session.dtype == torch.float16 else 1.0,
        start_policy=policies.known(policies.start),
        room=session.room,
        ranks=ranks(),
    )


def _fit(trainer, plan, start, before, examples, held_out, progress, live, looks):
    """Train with progress, bar and events: (every update's metrics, how many had been made before, lines to
    tell, why it ended early)."""
    total = trainer.steps_in(examples)
    bar, stopped = comfy.utils.ProgressBar(total), ""

    def stop(made):
        nonlocal stopped
        reason = monitor.stop_reason(made, plan.stop_kl, plan.patience, before)
        ended = next(filter(None, ranks().gathered(live.ended_early())), "")  # on whichever page
        stopped = reason or ended
        if looks and not stopped:  # another update follows
            looks.when_due()
        return stopped

    def begin(done):
        bar.update(total - trainer.steps_in(examples, done))
        live.begin(trainer.updates_in(examples), done)

    with Events(start.run and ranks().first and events_folder(start.run.name)) as events:
        made, resumed, warning = progress.fit(
            trainer,
            examples,
            begin,
            on_step=lambda: bar.update(1),
            held_out=held_out,
            evaluate_every=plan.evaluate_every,
            stop=stop,
            on_update=lambda made: (events.write(trainer.step, made[-1]), live.updated(made)),
        )
        if not plan.evaluate_every or len(made) % plan.evaluate_every:
            last = made[-1]
            if resumed < len(made):  # the rest of the last update's is written
                last = {name: value for name, value in last.items() if metrics.held_out(name)}
            events.write(trainer.step, last)
    return made, resumed, list(filter(None, [went_on(resumed), warning, stopped])), stopped


def _fitted(passes, settings):
    """What was done for training to fit into memory, in lines."""
    lines = []
    if passes.checkpointed and settings.checkpointing == AUTOMATIC:
        lines.append(
            "To fit into memory, the network's blocks were gone through again in the backward pass "
            "(checkpointing)"
        )
    if passes.per_pass != settings.candidates_per_pass:
        lines.append(f"To fit into memory, {passes.per_pass} went through the network at a time")
    return lines


def _held(pictures, history, leash, hold):
    """Hold what was learned on its leash by that function, add how far pictures moved to the last update's
    metrics: lines to tell."""
    limit = length(leash.whole, leash.labels)
    history[-1][metrics.MOVED], left = hold(pictures.trainer, pictures.moved, limit)
    lines = []
    if limit < leash.whole:
        lines.append(
            f"Somebody has looked at {leash.labels} candidates so far, which is little to go by: pictures "
            f"may move by {limit:.2g}. From {ENOUGH} on it is {leash.whole:g}"
        )
    if left < 1:
        lines.append(
            f"Pictures had moved further than {limit:.2g}, so the LoRA was pulled back: {left:.0%} of what "
            "it had learned is left"
        )
    if left > 1:
        lines.append(
            "Pictures had moved less far than they may, and your taste holds for pictures that you were not "
            f"asked about, so the LoRA was carried on, to {left:.1f} times what it had learned"
        )
    return lines


def learnable(model, preferences, learn_from):
    """Judged sets in the form that they are learned from."""
    if learn_from == RECORDED:
        return list(preferences)
    recorded_noise = learn_from == RECORDED_NOISE
    return [replace(p, candidates=host.finished(model, p.candidates, recorded_noise)) for p in preferences]


def _example(session, preferences, guidance, policies):
    """A judged set with its denoisers."""
    candidates = preferences.candidates
    return loop.Example(
        preferences,
        session.denoiser(candidates, guidance),
        session.unconditional(candidates),
        own_sampler=candidates.recorded and policies.is_own_sampler(candidates.policy),
    )
