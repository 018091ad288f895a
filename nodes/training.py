"""The train step: preferences in, LoRA out."""

import time
from dataclasses import asdict

import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import io

from ..d3po_core import trainer
from ..d3po_core.lora import TARGETS, Adapter, to_state_dict
from . import host
from .types import CATEGORY, LoraModel, LossMap, PreferencesType, TrainedLora, TrainingState

GUIDANCE = ("as recorded", "off (faster)")
# what a run may not change half way, because its LoRA would no longer fit
SHAPE = ("rank", "alpha", "targets")


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
                                       "dozen updates want more, up to about 1e-3."),
                io.Float.Input("beta", default=0.1, min=1e-6, max=100000.0, step=0.01, round=False,
                               tooltip="How much difference from the reference satisfies the loss. Higher: learning stops "
                                       "sooner. D3PO uses 0.1 with the paper weighting; standardised wants about 200."),
                io.Float.Input("clip", default=0.1, min=0.0, max=0.99, step=0.01, round=False,
                               tooltip="Probability ratios are held within 1 - clip and 1 + clip, beyond which a step of a "
                                       "candidate is not pushed further. 0: no limit. D3PO uses 0.1."),
                io.Combo.Input("weighting", options=list(trainer.WEIGHTINGS), default="paper",
                               tooltip="paper: log-ratios as they are, so the steps at one end of the schedule decide "
                                       "nearly everything. standardised: every denoising step pulls alike."),
                io.Combo.Input("reference", options=list(trainer.REFERENCES), default="base",
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
                io.Float.Input("weight_decay", default=1e-4, min=0.0, max=1.0, step=1e-5, round=False,
                               tooltip="AdamW's pull of the LoRA's weights towards zero."),
                io.Float.Input("max_grad_norm", default=1.0, min=1e-4, max=1000.0, step=0.1, round=False,
                               tooltip="Gradients longer than this are shortened to it."),
                io.Int.Input("candidates_per_pass", default=0, min=0, max=64,
                             tooltip="Candidates that go through the network together. 0: all of a set. 1 needs the least "
                                     "memory and takes longer (up to three times), for the same result."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=False,
                             tooltip="Decides the LoRA's first weights and the order of training."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the trained LoRA on it."),
                LoraModel.Output(display_name="lora", tooltip="The trained LoRA: wire to Save Run, Save LoRA or Load LoRA "
                                                              "Model."),
                LossMap.Output(display_name="loss_map", tooltip="Loss and other metrics of every update of the run: wire "
                                                                "to Plot Loss Graph."),
                io.Int.Output(display_name="steps", tooltip="Optimizer steps the LoRA has had in all."),
                io.String.Output(display_name="report", tooltip="What was learned, in words and numbers."),
            ],
        )

    @classmethod
    def execute(cls, model, preferences, lora=None, **widgets):
        model, lora = model[0], (lora or [None])[0]
        values = {name: value[0] for name, value in widgets.items()}
        shape = {name: values.pop(name) for name in SHAPE}
        guidance = None if values.pop("guidance") == GUIDANCE[0] else 1.0
        settings = trainer.Settings(**values)
        base = host.fingerprint(model)
        trajectories = [p.trajectory for p in preferences]
        require_same_model(model, base, trajectories)
        previous = require_continuable(lora, base, shape)
        policy = previous.policy if settings.reference == "round start" and previous else host.policy_name(model)
        began = time.monotonic()

        def work(session):
            adapter = Adapter(session.network, seed=settings.seed, device=session.device, **shape)
            try:
                # a LoRA merged into half-precision weights is rounded, so its recording is not this network's
                exact = policy == host.policy_name(model) or session.dtype == torch.float32
                steps = trainer.Trainer(adapter, settings, policy if guidance is None and exact else None,
                                        session.device, loss_scale=2.0 ** 16 if session.dtype == torch.float16 else 1.0)
                if previous:
                    steps.load_state(previous.tensors, previous.step)
                examples = [trainer.Example(p, session.denoiser(p.trajectory, guidance)) for p in preferences]
                bar = comfy.utils.ProgressBar(steps.steps_in(examples))
                history = steps.fit(examples, on_step=lambda: bar.update(1))
                return adapter.weights(), steps.state(), history
            finally:
                adapter.eject()

        weights, (tensors, step), history = host.train_inside(model, trajectories, work)
        tensors_out = to_state_dict(weights, shape["alpha"])
        record = (previous.history if previous else []) + history
        described = asdict(settings) | shape | {"architecture": type(model.model.model_config).__name__}
        state = TrainingState(tensors, step, described, base, history=record)
        tuned, _ = comfy.sd.load_lora_for_models(model, None, tensors_out, 1.0, 0)
        state.policy = host.policy_name(tuned)
        losses = {name.replace(" ", "_"): [m[name] for m in record] for name in record[0]}
        text = report(preferences, history, step, time.monotonic() - began)
        return io.NodeOutput(tuned, TrainedLora(tensors_out, state), losses, step, text, ui={"text": [text]})


def require_same_model(model, base, trajectories):
    channels = model.get_model_object("latent_format").latent_channels
    for trajectory in trajectories:
        if trajectory.states.shape[2] != channels:
            raise ValueError(f"preferences: these candidates have latents of {trajectory.states.shape[2]} channels, and "
                             f"the model wired to 'model' wants {channels}: they come from another kind of model")
        if trajectory.model != base:
            raise ValueError("preferences: these candidates were recorded on another model than the one wired to "
                             "'model'. Wire the same base model to both the sampler and the train step")


def require_continuable(lora, base, shape):
    """The state to go on from, or None for a new LoRA."""
    if lora is None:
        return None
    if not isinstance(lora, TrainedLora):
        raise ValueError("lora: this LoRA does not come from D3PO Load Run, so its training cannot go on; leave 'lora' "
                         "unconnected to start a new one")
    training = lora.training
    if training.model != base:
        raise ValueError("lora: it was trained on another base model than the one wired to 'model'")
    if training.step == 0:
        return None
    changed = [f"{name} {training.settings[name]}" for name in SHAPE if training.settings[name] != shape[name]]
    if changed:
        raise ValueError(f"lora: this run was started with {' and '.join(changed)}. Set the same again, or give the run "
                         "another name to start a new one")
    return training


def report(preferences, history, step, seconds):
    last = history[-1]
    pairs = sum(len(p.pairs) for p in preferences)
    lines = [f"{pairs} pairs in {len(preferences)} sets, {len(history)} updates ({step} in all), {seconds:.0f} s"]
    lines += [f"{name}: {last[name]:.4g}" for name in (
        "loss", "margin", "implicit accuracy", "winner log-ratio", "loser log-ratio", "KL to reference",
        "clip fraction", "gradient norm")]
    return "\n".join(lines)
