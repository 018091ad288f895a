"""The reward train step: a scorer and prompts in, LoRA out."""

import time
from dataclasses import asdict, replace

from comfy_api.latest import io

from ...d3po_core.runs.progress import Progress
from ...d3po_core.taste.guard import LEASH
from ...d3po_core.training import rewards
from ...d3po_core.training.adapter import TARGETS
from .. import host
from ..prompts import prompts_of
from ..routes import workflow_id
from ..sampling import cfg_input, every, latent_of, scheduler_input, sigmas_of
from ..together import alone
from ..types import CATEGORY, LoraModel, ScorerType
from .report import as_data, loss_map
from .results import ended_early, handed_on, outputs
from .reward_training import Round, figures_of, report, train
from .rounds import require_continuable, round_on, state_after


class D3PORewardTrainStep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3PORewardTrainStep",
            display_name="D3PO Reward Train Step",
            category=CATEGORY,
            search_aliases=["draft", "alignprop", "refl", "reward gradient", "reward backpropagation"],
            description="Trains a LoRA so that pictures score higher, along the gradient of a scorer through "
            "decoding and the last steps of sampling (DRaFT, AlignProp, ReFL). It samples the pictures "
            "itself, watches how far they move, and stops before they break. Your model is left as it is.",
            is_input_list=True,
            inputs=[*wires(), *sampling(), *learning(), *lora_shape(), *further()],
            outputs=outputs("Loss, score"),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, positive, negative, latent_image, cfg, prompt=(), lora=None, **given):
        began = time.monotonic()
        alone("D3PO Reward Train Step")
        one = {name: values[0] for name, values in given.items()}
        model, scorer, second = one["model"], one["scorer"], one.get("second_scorer")
        require_gradient(scorer)
        sets = every({"positive": positive, "negative": negative, "latent": latent_image})
        name = host.set_name(cls.hidden.dynprompt, cls.hidden.unique_id)
        prompts = [prompt_of(model, f"{name} {i}", cfg[0], **own) for i, own in enumerate(sets)]
        texts = prompts_of(cls, prompt, len(prompts))

        recipe = rewards.Recipe(*(one[name] for name in ("method", "updates", "pictures", "last_steps")))
        settings = replace(rewards.SETTINGS, learning_rate=one["learning_rate"], seed=one["seed"] % 2**63)
        shape = rewards.SHAPE | {"rank": one["rank"], "targets": one["targets"]}
        start = require_continuable((lora or [None])[0], host.fingerprint(model), shape)
        described = asdict(settings) | asdict(recipe) | shape | {"scorer": scorer.name, "leash": one["leash"]}
        described |= {"architecture": type(model.model.model_config).__name__}
        noted = [{"set": p.set_id, "said": scorer.name, "made": str(text)} for p, text in zip(prompts, texts)]
        round_ = round_on(start, described | {"above": name}, noted)
        progress = Progress(start.run, round_["key"])

        sigmas = sigmas_of(model, one["steps"], one["scheduler"], 1.0)
        plan = Round(recipe, settings, shape, sigmas, scorer, second, one["leash"], texts)
        page = workflow_id(cls.hidden.extra_pnginfo)
        with host.decoding(model, one["vae"], prepared(scorer, second, texts)) as decoding:
            out = host.train_inside(
                decoding.beside,
                prompts,
                lambda session: train(session, plan, prompts, decoding.decode, start, progress, page),
                recipe.pictures,
            )
        state = state_after(start, out, described, start.model, round_, progress)
        tuned, trained = handed_on(model, out, shape, state)
        figures = figures_of(out, len(prompts), time.monotonic() - began)
        text = "\n".join([report(figures), *out.told])
        return io.NodeOutput(
            tuned,
            trained,
            loss_map(state.history),
            out.step,
            text,
            ui={"text": [text], "warnings": out.warned, "figures": [as_data(figures)]}
            | ended_early(out.stopped),
        )


def wires():
    return [
        io.Model.Input("model", tooltip="The base model, without the LoRA that is being trained."),
        io.Vae.Input("vae", tooltip="Decodes the pictures that are scored."),
        ScorerType.Input("scorer", tooltip="What pictures are to score higher by. It must have a gradient."),
        io.Conditioning.Input("positive", tooltip="The prompts, as many as you like: from D3PO Prompts."),
        io.Conditioning.Input("negative", tooltip="What to keep out of the pictures."),
        io.Latent.Input("latent_image", tooltip="An empty latent for the pictures' size."),
    ]


def sampling():
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            tooltip="Decides the pictures that are sampled and the LoRA's first weights. A run's next round "
            "samples others by itself.",
        ),
        io.Int.Input("steps", default=20, min=2, max=1000, tooltip="Sampling steps, by Euler's method."),
        cfg_input("Guidance scale, used while training as well."),
        scheduler_input(),
    ]


def learning():
    defaults = rewards.Recipe()
    return [
        io.Combo.Input(
            "method",
            options=list(rewards.METHODS),
            default=defaults.method,
            tooltip="What the gradient goes back through. DRaFT-K: the last steps, by default one. DRaFT-LV: "
            "the last step, with several noises, which is steadier. AlignProp: a random number of last "
            "steps, which also changes what is where, and is slower. ReFL: one late step.",
        ),
        io.Int.Input(
            "updates",
            default=defaults.updates,
            min=1,
            max=100_000,
            tooltip="How often the LoRA is changed in this round.",
        ),
        io.Float.Input(
            "learning_rate",
            default=rewards.SETTINGS.learning_rate,
            min=0.0,
            max=1.0,
            step=1e-5,
            round=False,
            tooltip="How far an update goes.",
        ),
        io.Float.Input(
            "leash",
            default=LEASH,
            min=0.0,
            max=100.0,
            step=0.05,
            tooltip="How far pictures may move from the model's own in what they have in common, in what "
            "pictures of a prompt differ by. Beyond it training stops and the LoRA is pulled back. 0: as far "
            "as they like, until they break.",
        ),
        io.Int.Input(
            "pictures",
            default=defaults.pictures,
            min=1,
            max=1000,
            tooltip="How many pictures an update samples, each of another prompt where there are so many.",
        ),
        io.Int.Input(
            "last_steps",
            default=defaults.last_steps,
            min=0,
            max=1000,
            tooltip="The most steps that DRaFT-K and AlignProp go back through. 0: one for DRaFT-K, all for "
            "AlignProp.",
        ),
    ]


def lora_shape():
    return [
        io.Int.Input(
            "rank",
            default=rewards.SHAPE["rank"],
            min=1,
            max=512,
            tooltip="Size of the LoRA. A run keeps the rank that it was started with.",
        ),
        io.Combo.Input(
            "targets",
            options=list(TARGETS),
            default=rewards.SHAPE["targets"],
            tooltip="Which layers get a LoRA.",
        ),
    ]


def further():
    return [
        LoraModel.Input(
            "lora",
            optional=True,
            tooltip="The LoRA to go on from, from Load Run. Without it a new one is started.",
        ),
        ScorerType.Input(
            "second_scorer",
            optional=True,
            tooltip="Watches without being trained by: training stops where its score falls while the other "
            "rises. Wire one that falls where pictures get worse.",
        ),
        io.String.Input(
            "prompt",
            optional=True,
            force_input=True,
            tooltip="The prompts' texts, from D3PO Prompts, for scorers that look at them.",
        ),
    ]


def require_gradient(scorer):
    if not scorer.differentiable:
        raise ValueError(
            f"scorer: {scorer.name} has no gradient to follow. Wire it to D3PO Score Preference, and train "
            "on its preferences"
        )


def prepared(scorer, second, texts):
    """The models that the scorers judge by. Raises ValueError, naming the input, where one cannot."""
    models = []
    for name, each in {"scorer": scorer, "second_scorer": second}.items():
        try:
            models += each.prepare(texts) if each else ()
        except ValueError as error:
            raise ValueError(f"{name}: {each.name}: {error}") from error
    return models


def prompt_of(model, name, cfg, positive, negative, latent):
    """What stands for pictures of a prompt. Raises ValueError for what cannot be sampled from."""
    host.require_plain(positive, "positive")
    host.require_plain(negative, "negative")
    samples = latent_of(model, latent, 1)
    if "noise_mask" in latent or samples.any() or samples.ndim > 4 and samples.shape[2] > 1:
        raise ValueError(
            "latent_image: pictures are sampled from noise alone. Wire an empty latent of one picture, "
            "without a mask"
        )
    return host.to_sample(model, name, host.Conditioning(positive, negative, cfg, samples, 0))
