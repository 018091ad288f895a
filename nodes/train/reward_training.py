"""A round of reward training inside the host's model: a scorer and prompts to a LoRA's weights."""

from typing import Any, NamedTuple

import comfy.utils
import torch

from ...d3po_core.candidates.scorers import Scorer
from ...d3po_core.runs.tensorboard import Events
from ...d3po_core.taste.guard import LOOK_EVERY, Guard
from ...d3po_core.training import metrics
from ...d3po_core.training.adapter import Adapter
from ...d3po_core.training.rewards import Recipe, RewardTrainer, Source
from ...d3po_core.training.settings import Settings
from ..host.conditioning import AS_RECORDED
from ..library import events_folder
from .live import LOOKING, learning
from .report import lines_of
from .results import went_on
from .training import Outcome

SHOWN = (
    metrics.LOSS,
    metrics.SCORE,
    metrics.GAIN,
    metrics.FIDELITY,
    metrics.MOVED,
    metrics.GRADIENT_NORM,
)


class Round(NamedTuple):
    """What to do: shape is the LoRA's, sigmas [steps + 1] are sampled by, texts are the prompts' where known;
    second is a scorer to watch by, or None."""

    recipe: Recipe
    settings: Settings
    shape: dict
    sigmas: Any
    scorer: Scorer
    second: Scorer | None
    leash: float
    texts: list


def train(session, plan, prompts, decode, start, progress, workflow):
    """Train a LoRA on the session's network, which stays as it is: an Outcome. prompts are what stands for
    their pictures, [CleanCandidates]; workflow's page is told."""
    adapter = Adapter(session.network, seed=plan.settings.seed, device=session.device, **plan.shape)
    try:
        if start.initial:
            adapter.begin_from(start.initial)
        trainer = RewardTrainer(
            adapter,
            plan.settings,
            plan.recipe,
            plan.scorer,
            decode,
            plan.sigmas.clone(),  # made in inference mode, they have no gradients
            session.device,
            loss_scale=2.0**16 if session.dtype == torch.float16 else 1.0,
            room=session.room,
        )
        if start.step:
            trainer.load_state(start.tensors, start.step)
        sources = [
            Source(each, session.denoiser(each, AS_RECORDED), session.denoiser(each), text)
            for each, text in zip(prompts, plan.texts)
        ]
        guard = Guard(trainer, sources, plan.leash, plan.second)
        trainer.usual = guard.usual
        with learning(workflow, plan.leash) as live:
            made, lines = fit(trainer, plan, start, sources, guard, progress, live)
            stopped = guard.stop(made) or live.ended_early()
            live.tell(LOOKING)
            told = guard.settle(made)
        return Outcome(trainer.trained(), *trainer.state(), made, made, [*lines, *told], told, stopped)
    finally:
        adapter.eject()


def fit(trainer, plan, start, sources, guard, progress, live):
    """Train with progress, bar and events: (every update's metrics, lines to tell)."""
    pictures = plan.recipe.pictures
    bar = comfy.utils.ProgressBar(plan.recipe.updates * pictures)

    def begin(done):
        bar.update(done * pictures)
        live.begin(plan.recipe.updates, done)

    with Events(start.run and events_folder(start.run.name)) as events:
        made, resumed, warning = progress.fit(
            trainer,
            sources,
            begin,
            on_step=lambda: bar.update(1),
            stop=lambda made: guard.stop(made) or live.enough,
            look=guard.look,
            look_every=LOOK_EVERY,
            on_update=lambda made: (events.write(trainer.step, made[-1]), live.updated(made)),
        )
    return made, list(filter(None, [went_on(resumed), warning, live.ended_early()]))


def figures_of(out, prompts, seconds):
    """{name: number} of all that the report says of this train step in numbers."""
    last = out.history[-1]
    return {"prompts": prompts, "updates": len(out.history), "step": out.step, "seconds": seconds} | {
        name: last[name] for name in SHOWN if name in last
    }


def report(figures):
    first = (
        f"{figures['prompts']} prompts, {figures['updates']} updates ({figures['step']} in all), "
        f"{figures['seconds']:.0f} s"
    )
    return "\n".join([first, *lines_of(figures, SHOWN)])
