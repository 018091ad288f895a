"""A round of training inside the host's model: judged sets to a LoRA's weights."""

from dataclasses import replace
from typing import NamedTuple

import comfy.utils
import torch

from ...d3po_core.candidates.images import CleanCandidates
from ...d3po_core.candidates.trajectory import Trajectory
from ...d3po_core.runs.tensorboard import Events
from ...d3po_core.training import loop, metrics, monitor
from ...d3po_core.training.adapter import Adapter
from ...d3po_core.training.methods import RECORDED
from ...d3po_core.training.reference import weights_of
from .. import host
from ..library import events_folder
from .agreement import require_repeatable, sampled_otherwise
from .schema import RECORDED_NOISE


class Outcome(NamedTuple):
    """Of a train step: the LoRA and the state to go on from; the metrics of the updates that led there, and of all that
    were made; what there is to tell and to warn of, in lines."""

    weights: dict
    tensors: dict
    step: int
    history: list
    made: list
    told: list
    warned: list


def train(session, plan, start, before, preferences, held_out, policy, progress):
    """Train a LoRA on the session's network, which stays as it is: an Outcome. policy names the base model; before is
    earlier history whose KL is to the same reference."""
    settings, (_, space, beside) = plan.settings, policy.partition(" ")
    start_policy = weights_of(start.policy) + space + beside if start.step or start.initial else policy
    reference_policy = start_policy if settings.reference == "round start" else policy
    if beside:
        require_repeatable(session, preferences[0].trajectory, plan.guidance)
    adapter = Adapter(
        session.network, seed=settings.seed, device=session.device, dropout=plan.dropout, **plan.shape
    )
    try:
        if start.initial:  # before the trainer, whose reference may be the round's start
            adapter.begin_from(start.initial)

        def known(name):
            """The policy's name where its recordings are what this network gives: a LoRA merged into half-precision weights
            is rounded."""
            return (
                name if plan.guidance is None and (name == policy or session.dtype == torch.float32) else None
            )

        steps = loop.Trainer(
            adapter,
            settings,
            known(reference_policy),
            session.device,
            loss_scale=2.0**16 if session.dtype == torch.float16 else 1.0,
            start_policy=known(start_policy),
        )
        if start.step:
            steps.load_state(start.tensors, start.step)

        def is_own_sampler(name):
            return name != start_policy and known(name) is not None and name.partition(" ")[2] == beside

        examples, unseen = (
            [example(session, p, plan.guidance, is_own_sampler) for p in judged]
            for judged in (preferences, held_out)
        )
        total = steps.steps_in(examples)
        bar, stopped = comfy.utils.ProgressBar(total), ""

        def stop(made):
            nonlocal stopped
            stopped = monitor.stop_reason(made, plan.stop_kl, plan.patience, before)
            return stopped

        with Events(start.run and events_folder(start.run.name)) as events:
            made, resumed, warning = progress.fit(
                steps,
                examples,
                lambda done: bar.update(total - steps.steps_in(examples, done)),
                on_step=lambda: bar.update(1),
                held_out=unseen,
                evaluate_every=plan.evaluate_every,
                stop=stop,
                on_update=lambda made: events.write(steps.step, made[-1]),
            )
            if not plan.evaluate_every or len(made) % plan.evaluate_every:
                last = made[-1]
                if resumed < len(made):  # the rest of the last update's is written
                    last = {name: value for name, value in last.items() if metrics.held_out(name)}
                events.write(steps.step, last)
        history = progress.back_to_best(steps, made)
        told = [
            resumed and f"Went on after update {resumed} of this round, where training had been stopped",
            warning,
            stopped,
            len(history) < len(made)
            and f"Went back to update {len(history)} of this round, which ranks held_out best: "
            "the figures above and the LoRA are of that",
            plan.patience
            and not monitor.best_update(made)
            and "Patience had nothing to go by: held_out has no strict preference",
        ]
        unlike = sampled_otherwise([*preferences, *held_out], policy, steps, plan.guidance)
        return Outcome(steps.trained(), *steps.state(), history, made, list(filter(None, told)), unlike)
    finally:
        adapter.eject()


def learnable(model, preferences, learn_from):
    """Judged sets in the form that they are learned from."""
    if learn_from == RECORDED:
        return list(preferences)
    return [
        replace(p, trajectory=host.finished(model, p.trajectory, learn_from == RECORDED_NOISE))
        if isinstance(p.trajectory, Trajectory)
        else p
        for p in preferences
    ]


def example(session, preferences, guidance, is_own_sampler):
    """A judged set with its denoisers. Noised images are denoised without guidance, as in Diffusion-DPO. is_own_sampler
    says of a policy's name whether its recordings tell what it gave (Example.own_sampler)."""
    candidates = preferences.trajectory
    if isinstance(candidates, CleanCandidates):
        return loop.Example(preferences, session.denoiser(candidates, 1.0), session.unconditional(candidates))
    return loop.Example(
        preferences, session.denoiser(candidates, guidance), own_sampler=is_own_sampler(candidates.policy)
    )
