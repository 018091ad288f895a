"""The train step: preferences in, LoRA out."""

import time

from comfy_api.latest import io

from ...d3po_core.runs.progress import Progress, labels, trained_on
from ...d3po_core.taste.movement import spaced
from ...d3po_core.training import monitor
from ...d3po_core.training.presets import PRESETS, RECOMMENDED
from .. import host
from ..prompts import prompts_by_set
from ..routes import workflow_id
from ..together import everybodys
from ..types import CATEGORY, TASTE, LoraModel, PreferencesType, TrainedLora
from .looks import shown_by
from .passing import passed_over, round_of_nothing, why_nothing
from .plan import Plan
from .report import as_data, figures_of, held_out_report, loss_map, passed_over_report, report, sets_report
from .results import ended_early, handed_on, outputs
from .rounds import (
    alike,
    figures_names,
    require_continuable,
    require_same_model,
    round_of,
    state_after,
)
from .schema import SettingsType, widget
from .training import Leash, learnable, train


class D3POTrainStep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POTrainStep",
            display_name="D3PO LoRA Train Step",
            category=CATEGORY,
            search_aliases=["train lora", "dpo", "preference tuning", "rlhf", "alignment"],
            description="Trains a LoRA so that the preferred candidates become more likely than the "
            "rejected ones, against the frozen model as reference (D3PO, arXiv 2311.13231). Your model is "
            "left as it is.",
            is_input_list=True,
            accept_all_inputs=True,  # older prompts hold all settings here
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
                PreferencesType.Input(
                    "held_out",
                    optional=True,
                    tooltip="Judged candidates that are not trained on. They tell how well the LoRA ranks "
                    "what it has not seen, and Save Run keeps the best checkpoint by it.",
                ),
                SettingsType.Input(
                    "settings",
                    optional=True,
                    tooltip="All others, from D3PO Train Settings. Without it they are as 'strength' says.",
                ),
                widget("method", "Diffusion-DPO"),
                io.Combo.Input(
                    "strength",
                    list(PRESETS),
                    default=RECOMMENDED,
                    optional=True,
                    tooltip="How to learn, where no D3PO Train Settings is wired. recommended: made for a "
                    "few picks as for thousands, and held on a leash so that pictures stay whole. paper: "
                    "the method's paper's settings, made for thousands of updates.",
                ),
                *map(widget, ("epochs", "rank", "targets"), (0, None, "all linear")),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Wire a VAE to see on this node what pictures become: the same noise by the base "
                    "model and by the LoRA, while it learns and at its end.",
                ),
            ],
            outputs=outputs("Loss"),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.extra_pnginfo],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, model, preferences, lora=None, held_out=None, vae=None, **widgets):
        model, lora, vae, began = model[0], (lora or [None])[0], (vae or [None])[0], time.monotonic()
        texts = prompts_by_set(cls, preferences) if vae else {}
        policy = lora.training.policy if isinstance(lora, TrainedLora) else ""
        preferences, held_out = (p and everybodys(p, policy) for p in (preferences, held_out))
        plan = Plan.of(preferences, host.is_flow(model), **{name: own[0] for name, own in widgets.items()})
        if not preferences:
            raise ValueError("preferences: there is nothing to learn from: no judged set came in")
        plan.require_held_out(held_out)
        held_out, base = held_out or (), host.fingerprint(model)
        require_same_model(model, base, [p.candidates for p in preferences])
        require_same_model(model, base, [p.candidates for p in held_out], "held_out")
        preferences, held_out = (
            learnable(model, judged, plan.learn_from) for judged in (preferences, held_out)
        )
        start = require_continuable(lora, base, plan.shape)
        described = plan.described | {"architecture": type(model.model.model_config).__name__}
        patches = cls.patches_above()
        watched = trained_on(held_out) if plan.evaluate_every else []  # else they matter at the end alone
        decisive = described | {"guidance": plan.guidance, "above": patches, "watched": watched}
        round_ = round_of(start, decisive, preferences)
        round_ |= figures_names(described, plan.guidance, patches, held_out)
        before = {what: alike(start, what, round_[what]) for what in ("kl", "figures")}
        if why := why_nothing(preferences, plan.settings.method, plan.stop_kl, before["kl"]):
            stopped = why if monitor.kl_above(plan.stop_kl, before["kl"]) else ""
            return round_of_nothing(model, start, described, round_, why, loss_map(start.history), stopped)
        passed = passed_over(preferences, plan.settings.method)
        progress = Progress(start.run, round_["key"], plan.save_every, keep_best=plan.patience > 0)

        looked_at = spaced(preferences) if plan.settings.leash or vae else []
        views = [host.finished(model, p.candidates) for p in looked_at]
        by_taste = any(p.source == TASTE for p in preferences)
        leash = Leash(views, plan.settings.leash, labels([*start.rounds, round_]), by_taste)
        rest = (before["kl"], preferences, held_out, host.policy_name(model), progress, leash)
        page = workflow_id(cls.hidden.extra_pnginfo)
        with shown_by(model, vae, texts) as (beside, wanted):
            out = host.train_inside(
                beside,
                [p.candidates for p in [*preferences, *held_out]],
                lambda session: train(session, plan, start, *rest, page, wanted),
                plan.settings.candidates_per_pass,
            )

        state = state_after(start, out, described, base, round_, progress)
        tuned, trained = handed_on(model, out, plan.shape, state)
        first = start.step - len(before["figures"])
        warned = out.warned + monitor.warnings(before["figures"] + out.history, first)
        figures = figures_of(preferences, out, time.monotonic() - began)
        lines = [
            *passed_over_report(passed, preferences, described),
            *sets_report(preferences, plan.settings),
            *held_out_report(figures, preferences, held_out, before["figures"]),
            *out.told,
        ]
        text = "\n".join([report(figures), *lines, *(f"Warning: {warning}" for warning in warned)])
        ui = {"text": [text], "warnings": warned, "figures": [as_data(figures)]}
        ui |= ended_early(out.stopped) | ({"pictures": [out.pictures]} if out.pictures else {})
        return io.NodeOutput(tuned, trained, loss_map(start.history + out.made), out.step, text, ui=ui)

    @classmethod
    def patches_above(cls):
        """What names the nodes that put patches on the model, which its fingerprint leaves out."""
        node, output = cls.hidden.dynprompt.get_node(cls.hidden.unique_id)["inputs"]["model"]
        return [host.set_name(cls.hidden.dynprompt, node), output]
