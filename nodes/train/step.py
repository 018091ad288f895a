"""The train step: preferences in, LoRA out."""

import time

import comfy.sd
from comfy_api.latest import io

from ...d3po_core.runs.files import content_name
from ...d3po_core.runs.progress import Progress, trained_on
from ...d3po_core.training import monitor
from ...d3po_core.training.adapter import ADAPTERS, TARGETS, to_state_dict
from ...d3po_core.training.optimizers import OPTIMIZERS, SCHEDULES
from ...d3po_core.training.settings import REFERENCES, WEIGHTINGS
from .. import host
from ..types import CATEGORY, LoraModel, LossMap, PreferencesType, TrainedLora, TrainingState
from .passing import passed_over, round_of_nothing, why_nothing
from .plan import GUIDANCE, Plan
from .report import as_data, figures_of, held_out_report, loss_map, passed_over_report, report, sets_report
from .rounds import alike, figures_names, require_continuable, require_same_model, round_of
from .schema import METHOD
from .training import learnable, train


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
                io.Model.Input(
                    "model", tooltip="The base model, without the LoRA that is being trained: the reference."
                ),
                PreferencesType.Input("preferences", tooltip="Judged candidates from a preference node."),
                LoraModel.Input(
                    "lora",
                    optional=True,
                    tooltip="The LoRA to go on from, from Load Run. Without it a new one is started.",
                ),
                io.Int.Input(
                    "epochs",
                    default=1,
                    min=1,
                    max=10000,
                    tooltip="How often each judged set is used in this step.",
                ),
                io.Int.Input(
                    "sets_per_update",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Judged sets (prompts) that share one optimizer step. More give a steadier direction.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=3e-5,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="Size of an optimizer step (AdamW). D3PO uses 3e-5 over thousands of updates; a few "
                    "dozen updates want more, 3e-4 to 2e-3.",
                ),
                io.Float.Input(
                    "beta",
                    default=0.1,
                    min=1e-6,
                    max=100000.0,
                    step=0.01,
                    round=False,
                    tooltip="How much difference from the reference satisfies the loss. Higher: learning stops "
                    "sooner. D3PO uses 0.1 with the paper weighting; standardised wants about 100, IPO about "
                    "20. By mean over the latent: where log-probs are summed, it is called beta too and "
                    "is as much smaller as the latent has numbers.",
                ),
                io.Float.Input(
                    "clip",
                    default=0.1,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    round=False,
                    tooltip="Probability ratios are held within 1 - clip and 1 + clip, beyond which a step of a "
                    "candidate is not pushed further. 0: no limit. D3PO uses 0.1.",
                ),
                io.Combo.Input(
                    "weighting",
                    options=list(WEIGHTINGS),
                    default="paper",
                    tooltip="paper: log-ratios as they are, so the steps at one end of the schedule decide "
                    "nearly everything. standardised: every denoising step pulls alike.",
                ),
                io.Combo.Input(
                    "reference",
                    options=list(REFERENCES),
                    default="base",
                    tooltip="What the LoRA is compared with. base: the model without it, as in the paper. round "
                    "start: the LoRA as it came in, which moves further over many rounds.",
                ),
                io.Combo.Input(
                    "guidance",
                    options=list(GUIDANCE),
                    default=GUIDANCE[0],
                    tooltip="Guidance (cfg) while training. as recorded: the sampler's, as in the paper. off: "
                    "the prompt alone, which is less work, at some loss of exactness.",
                ),
                io.Float.Input(
                    "step_fraction",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    round=False,
                    tooltip="Share of the denoising steps that each update trains on, drawn anew every time. "
                    "Lower is faster and noisier.",
                ),
                io.Int.Input(
                    "rank",
                    default=8,
                    min=1,
                    max=512,
                    tooltip="Size of the LoRA. A run keeps the rank that it was started with.",
                ),
                io.Float.Input(
                    "alpha",
                    default=8.0,
                    min=0.01,
                    max=1024.0,
                    step=0.01,
                    round=False,
                    tooltip="The LoRA's update is scaled by alpha / rank.",
                ),
                io.Combo.Input(
                    "targets",
                    options=list(TARGETS),
                    default=TARGETS[0],
                    tooltip="Which layers get a LoRA. D3PO trains attention. Wider learns faster and makes a "
                    "larger file.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=1e-4,
                    advanced=True,
                    min=0.0,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="AdamW's pull of the LoRA's weights towards zero.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=1.0,
                    advanced=True,
                    min=1e-4,
                    max=1000.0,
                    step=0.1,
                    round=False,
                    tooltip="Gradients longer than this are shortened to it.",
                ),
                io.Int.Input(
                    "candidates_per_pass",
                    default=0,
                    advanced=True,
                    min=0,
                    max=64,
                    tooltip="Candidates that go through the network together. 0: all of a set. 1 needs the least "
                    "memory and takes longer (up to three times), for the same result.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Decides the LoRA's first weights and the order of training.",
                ),
                PreferencesType.Input(
                    "held_out",
                    optional=True,
                    tooltip="Judged candidates that are not trained on. They tell how well the LoRA "
                    "ranks what it has not seen, and Save Run keeps the best checkpoint by it.",
                ),
                io.Int.Input(
                    "save_every",
                    default=1,
                    min=0,
                    max=100000,
                    optional=True,
                    tooltip="With a run from Load Run: after every how many updates to keep the state on disk, "
                    "so that training which was stopped or killed goes on from there. 0: never.",
                ),
                io.Float.Input(
                    "dpo_beta",
                    default=5000.0,
                    min=1e-6,
                    max=1e6,
                    step=100.0,
                    round=False,
                    optional=True,
                    tooltip="For image pairs without a trajectory (Diffusion-DPO): beta, as its authors' code "
                    "counts it, half of it before the difference of errors. Trainers with beta before "
                    "the whole difference take half this value; for Diffusion-KTO its authors' 1000 is "
                    "so counted, and is 2000 here. beta, clip and weighting above are for "
                    "trajectories.",
                ),
                io.Int.Input(
                    "draws_per_set",
                    default=4,
                    min=1,
                    max=1000,
                    optional=True,
                    tooltip="For image pairs without a trajectory: at how many noise levels an update looks at each "
                    "set. More are steadier and slower.",
                ),
                METHOD,
                io.Combo.Input(
                    "adapter",
                    options=list(ADAPTERS),
                    default=ADAPTERS[0],
                    optional=True,
                    tooltip="What kind of LoRA. rsLoRA: scaled by alpha / sqrt(rank), for high ranks. DoRA: also "
                    "learns how strong each output is; slower. LoHa and LoKr (LyCORIS): products of "
                    "small matrices, for more reach at the same size. All load in Load LoRA.",
                ),
                io.Float.Input(
                    "dropout",
                    default=0.0,
                    advanced=True,
                    min=0.0,
                    max=0.9,
                    step=0.05,
                    round=False,
                    optional=True,
                    tooltip="Share of its inputs that the LoRA does not see in each training pass, against "
                    "learning a few picks by heart. LoHa and LoKr have none.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default=OPTIMIZERS[0],
                    optional=True,
                    tooltip="AdamW 8-bit (package bitsandbytes): a third of the memory for large LoRAs. AdamW "
                    "schedule-free (package schedulefree): averages its steps, needs no schedule, wants "
                    "about three times the learning rate.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default=SCHEDULES[0],
                    advanced=True,
                    optional=True,
                    tooltip="The learning rate over this train step. cosine: falls to 0 towards its end.",
                ),
                io.Int.Input(
                    "warmup",
                    default=0,
                    advanced=True,
                    min=0,
                    max=100000,
                    optional=True,
                    tooltip="Updates of a run over which the learning rate rises to its full size.",
                ),
                io.Float.Input(
                    "ema",
                    default=0.0,
                    advanced=True,
                    min=0.0,
                    max=0.9999,
                    step=0.001,
                    round=False,
                    optional=True,
                    tooltip="Decay of a moving average of the LoRA's weights: the average is what is saved and "
                    "sampled with, and training goes on from the weights. 0.99 to 0.999 smooths. 0: none.",
                ),
                io.Float.Input(
                    "window_start",
                    default=0.0,
                    advanced=True,
                    min=0.0,
                    max=0.99,
                    step=0.05,
                    round=False,
                    optional=True,
                    tooltip="Recorded steps: where the part of the schedule begins that is trained on. 0: its first "
                    "step, of most noise, where an image as a whole is decided.",
                ),
                io.Float.Input(
                    "window_end",
                    default=1.0,
                    advanced=True,
                    min=0.01,
                    max=1.0,
                    step=0.05,
                    round=False,
                    optional=True,
                    tooltip="Where that part ends. 1: with the last step, where details are. Half a schedule takes "
                    "half the time.",
                ),
                io.Int.Input(
                    "evaluate_every",
                    default=0,
                    advanced=True,
                    min=0,
                    max=100000,
                    optional=True,
                    tooltip="After every how many updates to measure on held_out. 0: only at the end.",
                ),
                io.Int.Input(
                    "patience",
                    default=0,
                    advanced=True,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="Stop when the held-out accuracy (of equal ones, the margin) has not been above its best "
                    "for so many measurements in a row, and hand on the LoRA as it was at this train "
                    "step's best. 0: never.",
                ),
                io.Float.Input(
                    "stop_kl",
                    default=0.0,
                    advanced=True,
                    min=0.0,
                    max=1e6,
                    step=0.001,
                    round=False,
                    optional=True,
                    tooltip="Stop when the KL to the reference, by mean over the latent and a few updates, is above "
                    "this: the LoRA has gone as far from the model as you like. 0: never.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the trained LoRA on it."),
                LoraModel.Output(
                    display_name="lora",
                    tooltip="The trained LoRA: wire to Save Run, Save LoRA or Load LoRA Model.",
                ),
                LossMap.Output(
                    display_name="loss_map",
                    tooltip="Loss and other metrics of every update of the run: wire "
                    "to D3PO Plot, or Plot Loss Graph.",
                ),
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
            raise ValueError(
                "patience: there is nothing to be patient about. Wire judged sets to held_out and set "
                "evaluate_every, or set patience to 0"
            )
        held_out, base = held_out or (), host.fingerprint(model)
        require_same_model(model, base, [p.candidates for p in preferences])
        require_same_model(model, base, [p.candidates for p in held_out], "held_out")
        preferences, held_out = (
            learnable(model, judged, plan.learn_from) for judged in (preferences, held_out)
        )
        start = require_continuable(lora, base, plan.shape)
        described = plan.described | {"architecture": type(model.model.model_config).__name__}
        wired = cls.hidden.dynprompt.get_node(cls.hidden.unique_id)["inputs"]["model"]
        above = [
            host.set_name(cls.hidden.dynprompt, wired[0]),
            wired[1],
        ]  # its patches, which the fingerprint leaves out
        watched = (
            trained_on(held_out) if plan.evaluate_every else []
        )  # else nothing depends on them before the end
        round_ = round_of(
            start, described | {"guidance": plan.guidance, "above": above, "watched": watched}, preferences
        )
        round_ |= figures_names(described, plan.guidance, above, held_out)
        before = {what: alike(start, what, round_[what]) for what in ("kl", "figures")}
        if why := why_nothing(preferences, plan.settings.method, plan.stop_kl, before["kl"]):
            return round_of_nothing(model, start, described, round_, why, loss_map(start.history))
        passed = passed_over(preferences, plan.settings.method)
        progress = Progress(start.run, round_["key"], save_every[0], keep_best=plan.patience > 0)

        out = host.train_inside(
            model,
            [p.candidates for p in [*preferences, *held_out]],
            lambda session: train(
                session, plan, start, before["kl"], preferences, held_out, host.policy_name(model), progress
            ),
            plan.settings.candidates_per_pass,
        )

        tensors = to_state_dict(out.weights, plan.shape["alpha"], adapter=plan.shape["adapter"])
        state = TrainingState(
            out.tensors,
            out.step,
            described,
            base,
            history=start.history + out.history,
            rounds=start.rounds + [round_],
            unsaved=start.unsaved + [progress],
            home=start.home,
            head=start.head,
        )
        tuned, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0)
        host.carry(tuned, content_name(out.weights))
        state.policy = host.policy_name(tuned)
        warned = out.warned + monitor.warnings(
            before["figures"] + out.history, start.step - len(before["figures"])
        )
        figures = figures_of(preferences, out, time.monotonic() - began)
        text = "\n".join(
            [
                report(figures),
                *passed_over_report(passed, preferences, described),
                *sets_report(preferences, plan.settings),
                *held_out_report(figures, preferences, held_out, before["figures"]),
                *out.told,
                *(f"Warning: {one}" for one in warned),
            ]
        )
        return io.NodeOutput(
            tuned,
            TrainedLora(tensors, state),
            loss_map(start.history + out.made),
            out.step,
            text,
            ui={"text": [text], "warnings": warned, "figures": [as_data(figures)]},
        )
