"""What a run notes of a round of training, and whether a round can go on from another."""

from ...d3po_core.runs.progress import key_of, name_of, trained_on
from ...d3po_core.runs.store import SHAPE
from .. import host
from ..stored import ImageSet
from ..types import PICKS, TASTE, TrainedLora, TrainingState


def round_of(start, settings, preferences):
    """What a run notes of a round of training, with the key that tells it from any other."""
    # with dropout a pass draws what is dropped
    indifferent = {"checkpointing"} | (set() if settings["dropout"] else {"candidates_per_pass"})
    decisive = {name: value for name, value in settings.items() if name not in indifferent}
    sets = trained_on(preferences)
    # of picks it can be told later whether they were changed
    noted = [
        entry
        | ({"candidates": p.candidates.count} if p.source == PICKS else {})
        | ({"labels": p.candidates.count} if p.source != TASTE else {})
        for entry, p in zip(sets, preferences)
    ]
    return round_on(start, decisive, sets) | {"sets": noted}


def round_on(start, decisive, sets):
    """The same of settings that all matter, and of sets as a run notes them."""
    before = start.tensors or {
        f"{path} {part} {alpha}": tensor
        for path, (up, down, alpha) in start.initial.items()
        for part, tensor in (("up", up), ("down", down))
    }
    return {"start": start.step, "key": key_of(start.step, before, decisive, start.model, sets), "sets": sets}


def state_after(start, out, described, base, round_, progress):
    """The run's state when a round has been trained, to go on from."""
    return TrainingState(
        out.tensors,
        out.step,
        described,
        base,
        history=start.history + out.history,
        rounds=start.rounds + [round_],
        unsaved=start.unsaved + [progress],
        home=start.home,
        head=start.head,
        look=out.look,
    )


def figures_names(described, guidance, above, held_out):
    """Names of what a round's KL, and what all its figures, depend on besides the LoRA.

    Where two rounds have the same name, their figures compare.
    """
    kl = [described[name] for name in ("learn_from", "reference", "window_start", "window_end")] + [
        guidance,
        above,
    ]
    figures = kl + [
        described[name] for name in ("method", "beta", "dpo_beta", "weighting", "clip", "ratio_clip")
    ]
    return {"kl": name_of(kl), "figures": name_of([figures, trained_on(held_out)])}


def alike(start, what, name):
    """The metrics of a run's last updates, as far back as its rounds have this name of their KL or figures.

    A round whose reference is its own start compares with no other.
    """
    since = start.step
    for round_ in reversed(start.rounds if start.settings.get("reference") == "base" else []):
        if round_.get(what) != name:
            break
        since = round_["start"]
    return start.history[since:]


def require_same_model(model, base, trajectories, name="preferences"):
    channels = model.get_model_object("latent_format").latent_channels
    for trajectory in trajectories:
        if isinstance(trajectory, ImageSet):
            raise ValueError(
                f"{name}: some of these candidates are images alone; wire their dataset to D3PO Encode Image "
                "Pairs, and that to this input"
            )
        given = trajectory.latent_shape[1]
        if given != channels:
            raise ValueError(
                f"{name}: these candidates have latents of {given} channels, and the model wired to 'model' "
                f"wants {channels}: they come from another kind of model"
            )
        sampling = trajectory.settings.get("sampling")
        if sampling not in (None, host.sampling_name(model)):
            raise ValueError(
                f"{name}: these candidates were made with the sampling {sampling}, and the model wired to "
                f"'model' has {host.sampling_name(model)}. Put the same ModelSampling node before both"
            )
        if trajectory.model != base:
            raise ValueError(
                f"{name}: these candidates were recorded on another model than the one wired to "
                "'model'. Wire the same base model to both the sampler and the train step"
            )


def require_continuable(lora, base, shape):
    """The state to go on from; for a new LoRA one of no steps."""
    if lora is None:
        return TrainingState({}, 0, {}, base)
    if not isinstance(lora, TrainedLora):
        raise ValueError(
            "lora: this LoRA does not come from D3PO Load Run, so its training cannot go on; leave 'lora' "
            "unconnected to start a new one"
        )
    training = lora.training
    if training.model != base:
        raise ValueError(
            "lora: it was trained on another base model than the one wired to 'model'. Wire that base "
            "model to both Load Run and the train step, or give the run another name to start a new one"
        )
    changed = [
        f"{name} {training.settings[name]}"
        for name in SHAPE
        if training.step and training.settings[name] != shape[name]
    ]
    if changed:
        raise ValueError(
            f"lora: this run was started with {' and '.join(changed)}. Set the same again, or give the run "
            "another name in Load Run to start a new one"
        )
    return training
