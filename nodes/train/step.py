"""The train step: preferences in, LoRA out."""

import time
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import io

from ...d3po_core.candidates.images import CleanCandidates
from ...d3po_core.candidates.trajectory import Trajectory
from ...d3po_core.runs.files import content_name
from ...d3po_core.runs.progress import Progress, key_of, name_of, trained_on
from ...d3po_core.runs.store import SHAPE
from ...d3po_core.runs.tensorboard import Events
from ...d3po_core.training import loop, monitor
from ...d3po_core.training.adapter import ADAPTERS, TARGETS, Adapter, to_state_dict
from ...d3po_core.training.methods import RECORDED
from ...d3po_core.training.optimizers import OPTIMIZERS, SCHEDULES
from ...d3po_core.training.reference import weights_of
from .. import host
from ..datasets import ImageSet
from ..library import events_folder
from ..types import CATEGORY, PICKS, LoraModel, LossMap, PreferencesType, TrainedLora, TrainingState
from .agreement import require_repeatable, sampled_otherwise
from .passing import passed_over, round_of_nothing, why_nothing
from .report import held_out_report, loss_map, passed_over_report, report, sets_report
from .schema import METHOD, RECORDED_NOISE, chosen

GUIDANCE = ("as recorded", "off (faster)")
DEFAULTS = {"adapter": ADAPTERS[0], "dropout": 0.0, "evaluate_every": 0, "patience": 0, "stop_kl": 0.0}  # may be left out


class D3POTrainStep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POTrainStep",
            display_name="D3PO LoRA Train Step",
            category=CATEGORY,
            search_aliases=["train lora", "dpo", "preference tuning", "rlhf", "alignment"],
            description="Trains a LoRA so that the preferred candidates become more likely than the rejected ones, "
                        "against the frozen model as reference (D3PO, arXiv 2311.13231). Your model is left as it is.",
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the LoRA that is being trained: the reference."),
                PreferencesType.Input("preferences", tooltip="Judged candidates from a preference node."),
                LoraModel.Input("lora", optional=True,
                                tooltip="The LoRA to go on from, from Load Run. Without it a new one is started."),
                io.Int.Input("epochs", default=1, min=1, max=10000,
                             tooltip="How often each judged set is used in this step."),
                io.Int.Input("sets_per_update", default=1, min=1, max=1000,
                             tooltip="Judged sets (prompts) that share one optimizer step. More give a steadier direction."),
                io.Float.Input("learning_rate", default=3e-5, min=0.0, max=1.0, step=1e-6, round=False,
                               tooltip="Size of an optimizer step (AdamW). D3PO uses 3e-5 over thousands of updates; a few "
                                       "dozen updates want more, 3e-4 to 2e-3."),
                io.Float.Input("beta", default=0.1, min=1e-6, max=100000.0, step=0.01, round=False,
                               tooltip="How much difference from the reference satisfies the loss. Higher: learning stops "
                                       "sooner. D3PO uses 0.1 with the paper weighting; standardised wants about 100, IPO about "
                                       "20. By mean over the latent: where log-probs are summed, it is called beta too and "
                                       "is as much smaller as the latent has numbers."),
                io.Float.Input("clip", default=0.1, min=0.0, max=0.99, step=0.01, round=False,
                               tooltip="Probability ratios are held within 1 - clip and 1 + clip, beyond which a step of a "
                                       "candidate is not pushed further. 0: no limit. D3PO uses 0.1."),
                io.Combo.Input("weighting", options=list(loop.WEIGHTINGS), default="paper",
                               tooltip="paper: log-ratios as they are, so the steps at one end of the schedule decide "
                                       "nearly everything. standardised: every denoising step pulls alike."),
                io.Combo.Input("reference", options=list(loop.REFERENCES), default="base",
                               tooltip="What the LoRA is compared with. base: the model without it, as in the paper. round "
                                       "start: the LoRA as it came in, which moves further over many rounds."),
                io.Combo.Input("guidance", options=list(GUIDANCE), default=GUIDANCE[0],
                               tooltip="Guidance (cfg) while training. as recorded: the sampler's, as in the paper. off: "
                                       "the prompt alone, which is less work, at some loss of exactness."),
                io.Float.Input("step_fraction", default=1.0, min=0.01, max=1.0, step=0.01, round=False,
                               tooltip="Share of the denoising steps that each update trains on, drawn anew every time. "
                                       "Lower is faster and noisier."),
                io.Int.Input("rank", default=8, min=1, max=512,
                             tooltip="Size of the LoRA. A run keeps the rank that it was started with."),
                io.Float.Input("alpha", default=8.0, min=0.01, max=1024.0, step=0.01, round=False,
                               tooltip="The LoRA's update is scaled by alpha / rank."),
                io.Combo.Input("targets", options=list(TARGETS), default=TARGETS[0],
                               tooltip="Which layers get a LoRA. D3PO trains attention. Wider learns faster and makes a "
                                       "larger file."),
                io.Float.Input("weight_decay", default=1e-4, advanced=True, min=0.0, max=1.0, step=1e-5, round=False,
                               tooltip="AdamW's pull of the LoRA's weights towards zero."),
                io.Float.Input("max_grad_norm", default=1.0, advanced=True, min=1e-4, max=1000.0, step=0.1, round=False,
                               tooltip="Gradients longer than this are shortened to it."),
                io.Int.Input("candidates_per_pass", default=0, advanced=True, min=0, max=64,
                             tooltip="Candidates that go through the network together. 0: all of a set. 1 needs the least "
                                     "memory and takes longer (up to three times), for the same result."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=False,
                             tooltip="Decides the LoRA's first weights and the order of training."),
                PreferencesType.Input("held_out", optional=True,
                                      tooltip="Judged candidates that are not trained on. They tell how well the LoRA "
                                              "ranks what it has not seen, and Save Run keeps the best checkpoint by it."),
                io.Int.Input("save_every", default=1, min=0, max=100000, optional=True,
                             tooltip="With a run from Load Run: after every how many updates to keep the state on disk, "
                                     "so that training which was stopped or killed goes on from there. 0: never."),
                io.Float.Input("dpo_beta", default=5000.0, min=1e-6, max=1e6, step=100.0, round=False, optional=True,
                               tooltip="For image pairs without a trajectory (Diffusion-DPO): beta, as its authors' code "
                                       "counts it, half of it before the difference of errors. Trainers with beta before "
                                       "the whole difference take half this value; for Diffusion-KTO its authors' 1000 is "
                                       "so counted, and is 2000 here. beta, clip and weighting above are for "
                                       "trajectories."),
                io.Int.Input("draws_per_set", default=4, min=1, max=1000, optional=True,
                             tooltip="For image pairs without a trajectory: at how many noise levels an update looks at each "
                                     "set. More are steadier and slower."),
                METHOD,
                io.Combo.Input("adapter", options=list(ADAPTERS), default=ADAPTERS[0], optional=True,
                               tooltip="What kind of LoRA. rsLoRA: scaled by alpha / sqrt(rank), for high ranks. DoRA: also "
                                       "learns how strong each output is; slower. LoHa and LoKr (LyCORIS): products of "
                                       "small matrices, for more reach at the same size. All load in Load LoRA."),
                io.Float.Input("dropout", default=0.0, advanced=True, min=0.0, max=0.9, step=0.05, round=False, optional=True,
                               tooltip="Share of its inputs that the LoRA does not see in each training pass, against "
                                       "learning a few picks by heart. LoHa and LoKr have none."),
                io.Combo.Input("optimizer", options=list(OPTIMIZERS), default=OPTIMIZERS[0], optional=True,
                               tooltip="AdamW 8-bit (package bitsandbytes): a third of the memory for large LoRAs. AdamW "
                                       "schedule-free (package schedulefree): averages its steps, needs no schedule, wants "
                                       "about three times the learning rate."),
                io.Combo.Input("schedule", options=list(SCHEDULES), default=SCHEDULES[0], advanced=True, optional=True,
                               tooltip="The learning rate over this train step. cosine: falls to 0 towards its end."),
                io.Int.Input("warmup", default=0, advanced=True, min=0, max=100000, optional=True,
                             tooltip="Updates of a run over which the learning rate rises to its full size."),
                io.Float.Input("ema", default=0.0, advanced=True, min=0.0, max=0.9999, step=0.001, round=False, optional=True,
                               tooltip="Decay of a moving average of the LoRA's weights: the average is what is saved and "
                                       "sampled with, and training goes on from the weights. 0.99 to 0.999 smooths. 0: none."),
                io.Float.Input("window_start", default=0.0, advanced=True, min=0.0, max=0.99, step=0.05, round=False,
                               optional=True,
                               tooltip="Recorded steps: where the part of the schedule begins that is trained on. 0: its first "
                                       "step, of most noise, where an image as a whole is decided."),
                io.Float.Input("window_end", default=1.0, advanced=True, min=0.01, max=1.0, step=0.05, round=False, optional=True,
                               tooltip="Where that part ends. 1: with the last step, where details are. Half a schedule takes "
                                       "half the time."),
                io.Int.Input("evaluate_every", default=0, advanced=True, min=0, max=100000, optional=True,
                             tooltip="After every how many updates to measure on held_out. 0: only at the end."),
                io.Int.Input("patience", default=0, advanced=True, min=0, max=1000, optional=True,
                             tooltip="Stop when the held-out accuracy (of equal ones, the margin) has not been above its best "
                                     "for so many measurements in a row, and hand on the LoRA as it was at this train "
                                     "step's best. 0: never."),
                io.Float.Input("stop_kl", default=0.0, advanced=True, min=0.0, max=1e6, step=0.001, round=False, optional=True,
                               tooltip="Stop when the KL to the reference, by mean over the latent and a few updates, is above "
                                       "this: the LoRA has gone as far from the model as you like. 0: never."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the trained LoRA on it."),
                LoraModel.Output(display_name="lora", tooltip="The trained LoRA: wire to Save Run, Save LoRA or Load LoRA "
                                                              "Model."),
                LossMap.Output(display_name="loss_map", tooltip="Loss and other metrics of every update of the run: wire "
                                                                "to D3PO Plot, or Plot Loss Graph."),
                io.Int.Output(display_name="steps", tooltip="Optimizer steps the LoRA has had in all."),
                io.String.Output(display_name="report", tooltip="What was learned, in words and numbers."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, model, preferences, lora=None, held_out=None, save_every=(1,), method=None, **widgets):
        model, lora, plan, began = model[0], (lora or [None])[0], Plan.of(method, widgets), time.monotonic()
        if not preferences:
            raise ValueError("preferences: there is nothing to learn from: no judged set came in")
        if plan.patience and (held_out is None or not plan.evaluate_every):
            raise ValueError("patience: there is nothing to be patient about. Wire judged sets to held_out and set "
                             "evaluate_every, or set patience to 0")
        held_out, base = held_out or (), host.fingerprint(model)
        require_same_model(model, base, [p.trajectory for p in preferences])
        require_same_model(model, base, [p.trajectory for p in held_out], "held_out")
        preferences, held_out = (learnable(model, judged, plan.learn_from) for judged in (preferences, held_out))
        start = require_continuable(lora, base, plan.shape)
        described = plan.described | {"architecture": type(model.model.model_config).__name__}
        wired = cls.hidden.dynprompt.get_node(cls.hidden.unique_id)["inputs"]["model"]
        above = [host.set_name(cls.hidden.dynprompt, wired[0]), wired[1]]  # its patches, which the fingerprint leaves out
        watched = trained_on(held_out) if plan.evaluate_every else []  # else nothing depends on them before the end
        round_ = round_of(start, described | {"guidance": plan.guidance, "above": above, "watched": watched}, preferences)
        round_ |= figures_names(described, plan.guidance, above, held_out)
        before = {what: alike(start, what, round_[what]) for what in ("kl", "figures")}
        if why := why_nothing(preferences, plan.settings.method, plan.stop_kl, before["kl"]):
            return round_of_nothing(model, start, described, round_, why, loss_map(start.history))
        passed = passed_over(preferences, plan.settings.method)
        progress = Progress(start.run, round_["key"], save_every[0], keep_best=plan.patience > 0)

        out = host.train_inside(
            model, [p.trajectory for p in [*preferences, *held_out]],
            lambda session: train(session, plan, start, before["kl"], preferences, held_out, host.policy_name(model), progress),
            plan.settings.candidates_per_pass)

        tensors = to_state_dict(out.weights, plan.shape["alpha"], adapter=plan.shape["adapter"])
        state = TrainingState(out.tensors, out.step, described, base, history=start.history + out.history,
                              rounds=start.rounds + [round_], unsaved=start.unsaved + [progress], home=start.home,
                              head=start.head)
        tuned, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0)
        host.carry(tuned, content_name(out.weights))
        state.policy = host.policy_name(tuned)
        warned = out.warned + monitor.warnings(before["figures"] + out.history, start.step - len(before["figures"]))
        text = "\n".join([report(preferences, out, time.monotonic() - began),
                          *passed_over_report(passed, preferences, described),
                          *sets_report(preferences, plan.settings),
                          *held_out_report(out.history[-1], preferences, held_out, before["figures"]), *out.told,
                          *(f"Warning: {one}" for one in warned)])
        return io.NodeOutput(tuned, TrainedLora(tensors, state), loss_map(start.history + out.made), out.step, text,
                             ui={"text": [text], "warnings": warned})


@dataclass(frozen=True)
class Plan:
    """What the widgets say. guidance None: as recorded."""

    settings: loop.Settings
    shape: dict
    learn_from: str
    guidance: float | None
    dropout: float
    evaluate_every: int
    patience: int
    stop_kl: float

    @classmethod
    def of(cls, method, widgets):
        values = DEFAULTS | {name: value[0] for name, value in widgets.items()}
        shape = {name: values.pop(name) for name in SHAPE}
        own = {name: values.pop(name) for name in ("dropout", "evaluate_every", "patience", "stop_kl")}
        guidance = None if values.pop("guidance") == GUIDANCE[0] else 1.0
        learn_from, of_method = chosen(method or {"method": [loop.Settings().method]})
        return cls(loop.Settings(**values, **of_method), shape, learn_from, guidance, **own)

    @property
    def described(self):
        """What a run notes of it."""
        own = {name: getattr(self, name) for name in ("dropout", "evaluate_every", "learn_from", "patience", "stop_kl")}
        return asdict(self.settings) | self.shape | own


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
    adapter = Adapter(session.network, seed=settings.seed, device=session.device, dropout=plan.dropout, **plan.shape)
    try:
        if start.initial:  # before the trainer, whose reference may be the round's start
            adapter.begin_from(start.initial)

        def known(name):
            """The policy's name where its recordings are what this network gives: a LoRA merged into half-precision weights
            is rounded."""
            return name if plan.guidance is None and (name == policy or session.dtype == torch.float32) else None

        steps = loop.Trainer(adapter, settings, known(reference_policy), session.device,
                                loss_scale=2.0 ** 16 if session.dtype == torch.float16 else 1.0,
                                start_policy=known(start_policy))
        if start.step:
            steps.load_state(start.tensors, start.step)

        def is_own_sampler(name):
            return name != start_policy and known(name) is not None and name.partition(" ")[2] == beside

        examples, unseen = ([example(session, p, plan.guidance, is_own_sampler) for p in judged]
                            for judged in (preferences, held_out))
        total = steps.steps_in(examples)
        bar, stopped = comfy.utils.ProgressBar(total), ""

        def stop(made):
            nonlocal stopped
            stopped = monitor.stop_reason(made, plan.stop_kl, plan.patience, before)
            return stopped

        with Events(start.run and events_folder(start.run.name)) as events:
            made, resumed, warning = progress.fit(
                steps, examples, lambda done: bar.update(total - steps.steps_in(examples, done)),
                on_step=lambda: bar.update(1), held_out=unseen, evaluate_every=plan.evaluate_every, stop=stop,
                on_update=lambda made: events.write(steps.step, made[-1]))
            if not plan.evaluate_every or len(made) % plan.evaluate_every:
                last = made[-1]
                if resumed < len(made):  # the rest of the last update's is written
                    last = {name: value for name, value in last.items() if name.startswith("held-out")}
                events.write(steps.step, last)
        history = progress.back_to_best(steps, made)
        told = [resumed and f"Went on after update {resumed} of this round, where training had been stopped", warning, stopped,
                len(history) < len(made) and f"Went back to update {len(history)} of this round, which ranks held_out best: "
                                             "the figures above and the LoRA are of that",
                plan.patience and not monitor.best_update(made) and "Patience had nothing to go by: held_out has no strict "
                                                                  "preference"]
        unlike = sampled_otherwise([*preferences, *held_out], policy, steps, plan.guidance)
        return Outcome(steps.trained(), *steps.state(), history, made, list(filter(None, told)), unlike)
    finally:
        adapter.eject()


def learnable(model, preferences, learn_from):
    """Judged sets in the form that they are learned from."""
    if learn_from == RECORDED:
        return list(preferences)
    return [replace(p, trajectory=host.finished(model, p.trajectory, learn_from == RECORDED_NOISE))
            if isinstance(p.trajectory, Trajectory) else p for p in preferences]


def example(session, preferences, guidance, is_own_sampler):
    """A judged set with its denoisers. Noised images are denoised without guidance, as in Diffusion-DPO. is_own_sampler
    says of a policy's name whether its recordings tell what it gave (Example.own_sampler)."""
    candidates = preferences.trajectory
    if isinstance(candidates, CleanCandidates):
        return loop.Example(preferences, session.denoiser(candidates, 1.0), session.unconditional(candidates))
    return loop.Example(preferences, session.denoiser(candidates, guidance),
                           own_sampler=is_own_sampler(candidates.policy))


def round_of(start, settings, preferences):
    """What a run notes of a round of training, with the key that tells it from any other."""
    # with dropout it draws what is dropped
    decisive = {name: value for name, value in settings.items() if name != "candidates_per_pass" or settings["dropout"]}
    sets = trained_on(preferences)
    before = start.tensors or {f"{path} {part} {alpha}": tensor for path, (up, down, alpha) in start.initial.items()
                               for part, tensor in (("up", up), ("down", down))}
    # of picks it can be told later whether they were changed
    noted = [one | ({"candidates": p.trajectory.candidates} if p.source == PICKS else {}) for one, p in zip(sets, preferences)]
    return {"start": start.step, "key": key_of(start.step, before, decisive, start.model, sets), "sets": noted}


def figures_names(described, guidance, above, held_out):
    """Names of what a round's KL, and what all its figures depend on besides the LoRA: where two rounds have the same,
    theirs compare."""
    kl = [described[name] for name in ("learn_from", "reference", "window_start", "window_end")] + [guidance, above]
    figures = kl + [described[name] for name in ("method", "beta", "dpo_beta", "weighting", "clip", "ratio_clip")]
    return {"kl": name_of(kl), "figures": name_of([figures, trained_on(held_out)])}


def alike(start, what, name):
    """The metrics of the last updates of a run as far back as its rounds have this name of their KL or figures. A round that
    is held against its own start compares with no other."""
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
            raise ValueError(f"{name}: some of these candidates are images alone; wire their dataset to D3PO Encode Image "
                             "Pairs, and that to this input")
        given = trajectory.latent_shape[1]
        if given != channels:
            raise ValueError(f"{name}: these candidates have latents of {given} channels, and the model wired to 'model' "
                             f"wants {channels}: they come from another kind of model")
        told = trajectory.settings.get("sampling")
        if told not in (None, host.sampling_name(model)):
            raise ValueError(f"{name}: these candidates were made with the sampling {told}, and the model wired to 'model' "
                             f"has {host.sampling_name(model)}. Put the same ModelSampling node before both")
        if trajectory.model != base:
            raise ValueError(f"{name}: these candidates were recorded on another model than the one wired to "
                             "'model'. Wire the same base model to both the sampler and the train step")


def require_continuable(lora, base, shape):
    """The state to go on from; for a new LoRA one of no steps."""
    if lora is None:
        return TrainingState({}, 0, {}, base)
    if not isinstance(lora, TrainedLora):
        raise ValueError("lora: this LoRA does not come from D3PO Load Run, so its training cannot go on; leave 'lora' "
                         "unconnected to start a new one")
    training = lora.training
    if training.model != base:
        raise ValueError("lora: it was trained on another base model than the one wired to 'model'. Wire that base "
                         "model to both Load Run and the train step, or give the run another name to start a new one")
    changed = [f"{name} {training.settings[name]}" for name in SHAPE
               if training.step and training.settings[name] != shape[name]]
    if changed:
        raise ValueError(f"lora: this run was started with {' and '.join(changed)}. Set the same again, or give the run "
                         "another name in Load Run to start a new one")
    return training
