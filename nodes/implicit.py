"""The implicit reward: a tuned model as the judge of images, and how well it agrees with people."""

import comfy.utils
import torch
from comfy_api.latest import io

from ..d3po_core.candidates.preferences import Preferences
from ..d3po_core.training import implicit, metrics
from ..d3po_core.training.randomness import generator_of
from . import host
from .judging import preferred_and_rejected, require_one_image_each
from .stored import DatasetType, ImageSet, nothing, record_pairs
from .train.report import as_data
from .train.rounds import require_same_model
from .types import CATEGORY, PreferencesType, Trajectories

PER_PASS = 4  # candidates that go through the network together
DOUBT = 2.0  # standard errors within which a difference is not beyond noise
JUDGE = "implicit reward"
SAME = (
    "All rewards are exactly 0: 'tuned' denoises these images as 'model' does. There is no LoRA on it, or "
    "one of strength 0, or both inputs are the tuned model"
)
MODEL = dict(tooltip="The base model, without the LoRA: the reference.")
TUNED = dict(
    tooltip="The same model with a trained LoRA on it: from Load Run, the train step or any Load LoRA."
)
DRAWS = dict(
    default=16,
    min=2,
    max=1000,
    tooltip="At how many noise levels each image is looked at. More make the rewards surer and take longer: "
    "each costs every image one pass under both models.",
)
SEED = dict(
    default=0,
    min=0,
    max=0xFFFFFFFFFFFFFFFF,
    control_after_generate=False,
    tooltip="Decides the noise that images are looked at under. It is the same for all images of a set.",
)


LEAST_DIFFERENCE = dict(
    default=0.0,
    min=0.0,
    max=100.0,
    step=0.1,
    round=False,
    tooltip="Candidates whose rewards differ by this many standard errors or fewer tie. 0: "
    "any difference decides. 2: only what is beyond noise does.",
)


class D3POImplicitReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POImplicitReward",
            display_name="D3PO Implicit Reward",
            category=CATEGORY,
            search_aliases=[
                "rank images",
                "score images",
                "reward model",
                "best of n",
                "diffusion-dpo reward",
            ],
            description=(
                "Ranks images of one prompt by what a LoRA has learned to prefer: how much better the "
                "tuned model denoises each than the base model does (Diffusion-DPO's implicit reward, "
                "arXiv 2311.12908)."
            ),
            inputs=[
                io.Model.Input("model", **MODEL),
                io.Model.Input("tuned", **TUNED),
                io.Vae.Input("vae", tooltip="The model's VAE, for the images."),
                io.Conditioning.Input("positive", tooltip="The prompt under which the images are judged."),
                io.Image.Input(
                    "images", tooltip="The images to rank, wherever they come from: a batch of one size."
                ),
                io.Int.Input("draws", **DRAWS),
                io.Int.Input("seed", **SEED),
                io.Float.Input(
                    "beta",
                    default=implicit.BETA,
                    min=1e-6,
                    max=1e6,
                    step=100.0,
                    round=False,
                    tooltip="The unit of the rewards: the dpo_beta that the LoRA was trained with gives the "
                    "margins of its training. The ranking is the same with any.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The images, best first."),
                io.Image.Output(display_name="best", tooltip="The image of the highest reward."),
                io.Float.Output(
                    display_name="rewards",
                    is_output_list=True,
                    tooltip="Each image's reward, in the order given.",
                ),
                io.String.Output(
                    display_name="ranking",
                    tooltip="The images' numbers in the order given, from 1, best first.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="Rewards with their standard errors, and which are within noise.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, tuned, vae, positive, images, draws, seed, beta):
        base = require_tuned(model, tuned)
        clean = encoded(model, vae, positive, images, base)
        (rewards,) = measure(model, tuned, [clean], draws, seed, beta)
        mean = rewards.mean(0)
        order = mean.argsort(descending=True, stable=True)
        ranking, text = ranked(mean, order), report(rewards, "image")
        return io.NodeOutput(
            images[order], images[order[:1]], mean.tolist(), ranking, text, ui={"text": [text]}
        )


class D3POImplicitPreference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POImplicitPreference",
            display_name="D3PO Implicit Preference",
            category=CATEGORY,
            search_aliases=["ai feedback", "auto preference", "self rewarding", "judge"],
            description=(
                "Prefers recorded candidates by what a LoRA has learned, in place of a person: AI feedback "
                "by the implicit reward (Diffusion-DPO, arXiv 2311.12908). Each is looked at without "
                "guidance."
            ),
            is_input_list=True,
            inputs=[
                Trajectories.Input("trajectory", tooltip="The recorded candidates."),
                io.Image.Input("images", tooltip="The same candidates as images, from VAE Decode."),
                io.Model.Input("model", **MODEL),
                io.Model.Input("tuned", **TUNED),
                io.Int.Input("draws", **DRAWS),
                io.Int.Input("seed", **SEED),
                io.Float.Input("least_difference", **LEAST_DIFFERENCE),
                DatasetType.Input(
                    "dataset",
                    optional=True,
                    tooltip=f"Where the judgements are kept as well, under the name {JUDGE!r}: from D3PO "
                    "Save to Dataset or D3PO Load Sets.",
                ),
            ],
            outputs=[
                PreferencesType.Output(
                    display_name="preferences", is_output_list=True, tooltip="Wire to the train step."
                ),
                io.Image.Output(
                    display_name="preferred",
                    is_output_list=True,
                    tooltip="The candidate preferred most often.",
                ),
                io.Image.Output(
                    display_name="rejected", is_output_list=True, tooltip="The candidate rejected most often."
                ),
                io.Int.Output(
                    display_name="pairs",
                    is_output_list=True,
                    tooltip="How many strict preferences were found.",
                ),
                io.Float.Output(
                    display_name="mean",
                    is_output_list=True,
                    tooltip=f"The mean of the candidates' rewards, with beta {implicit.BETA:g}.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory, images, model, tuned, draws, seed, least_difference, dataset=(None,)):
        if len(trajectory) != len(images):
            raise ValueError(
                f"images: there are {len(images)} batches of images for {len(trajectory)} sets of candidates"
            )
        for candidates, batch in zip(trajectory, images):
            require_one_image_each(candidates, batch)
            if isinstance(candidates, ImageSet):
                raise ValueError(
                    "trajectory: these candidates are images alone, and this judge looks at recorded "
                    "ones; wire the images to D3PO Implicit Reward, which takes any"
                )
        model, tuned, dataset = model[0], tuned[0], dataset[0]
        require_same_model(model, require_tuned(model, tuned), trajectory, "trajectory")
        judged, texts = [], []
        for candidates, rewards in zip(trajectory, measure(model, tuned, trajectory, draws[0], seed[0])):
            pairs = implicit.strict_pairs(rewards, least_difference[0])
            judged.append(
                Preferences(candidates, tuple(pairs), source=JUDGE, scores=tuple(rewards.mean(0).tolist()))
            )
            texts.append(report(rewards, "candidate"))
            record_pairs(dataset, judged[-1], JUDGE)
        best, worst = zip(*(preferred_and_rejected(p, batch) for p, batch in zip(judged, images)))
        return io.NodeOutput(
            judged,
            list(best),
            list(worst),
            [len(p.pairs) for p in judged],
            [sum(p.scores) / len(p.scores) for p in judged],
            ui={"text": ["\n\n".join(texts)]},
        )


class D3POImplicitAccuracy(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POImplicitAccuracy",
            display_name="D3PO Implicit Accuracy",
            category=CATEGORY,
            search_aliases=["held out accuracy", "evaluate lora", "test preferences", "agreement"],
            description=(
                "How often a LoRA's implicit reward agrees with judgements that it was not trained on, "
                "with a 95% interval: Diffusion-DPO's test of a tuned model (arXiv 2311.12908)."
            ),
            is_input_list=True,
            inputs=[
                io.Model.Input("model", **MODEL),
                io.Model.Input("tuned", **TUNED),
                PreferencesType.Input(
                    "preferences",
                    tooltip="Judged candidates that were held out of training: from Load "
                    "Preferences, Encode Image Pairs or a judge.",
                ),
                io.Int.Input("draws", **DRAWS),
                io.Int.Input("seed", **SEED),
            ],
            outputs=[
                io.Float.Output(
                    display_name="accuracy",
                    tooltip="Share of the pairs that the reward ranks as they were judged. 0.5 is chance.",
                ),
                io.Float.Output(
                    display_name="margin",
                    tooltip=f"Mean reward of the winners less the losers', with beta {implicit.BETA:g}.",
                ),
                io.String.Output(
                    display_name="report", tooltip="Accuracy with its 95% interval, and the margin."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, tuned, preferences, draws, seed):
        model, tuned = model[0], tuned[0]
        judged = [p for p in preferences if p.pairs]
        if not judged:
            return nothing(cls, "There is no strict preference to measure on yet")
        sets = [p.candidates for p in judged]
        require_same_model(model, require_tuned(model, tuned), sets)
        rewards = measure(model, tuned, sets, draws[0], seed[0])
        margins = [
            values.mean(0)[list(w)] - values.mean(0)[list(l)]
            for values, (w, l) in zip(rewards, (zip(*p.pairs) for p in judged))
        ]
        result = implicit.accuracy(margins)
        figures = accuracy_figures(result, margins)
        text = "\n".join(accuracy_report(figures, any(values.any() for values in rewards)))
        return io.NodeOutput(
            result.share, result.margin, text, ui={"text": [text], "figures": [as_data(figures)]}
        )


def require_tuned(model, tuned):
    """The fingerprint of both models' base; ValueError where they have not the same, or read it
    differently."""
    base = host.fingerprint(model)
    if host.fingerprint(tuned) != base:
        raise ValueError(
            "tuned: this is another base model than the one wired to 'model'. Wire one base model to "
            "both, and put the LoRA on 'tuned' alone"
        )
    if host.sampling_name(tuned) != host.sampling_name(model):
        raise ValueError(
            f"tuned: it has the sampling {host.sampling_name(tuned)}, and the model wired to 'model' has "
            f"{host.sampling_name(model)}. Put the same ModelSampling node before both"
        )
    return base


def encoded(model, vae, positive, images, base):
    """Images [N, H, W, 3] of any making as CleanCandidates of a prompt. Raises ValueError for a VAE of
    another kind of model."""
    # without guidance nothing is asked of the negative prompt, but the host wants one
    conditioning = host.Conditioning(positive, positive, 1.0, torch.zeros(1, 1, 1, 1), 0)
    # one by one: to a video model's VAE several images are a video
    latents = torch.cat([vae.encode(image[None, ..., :3]) for image in images])
    clean = host.clean_candidates(model, latents, "images", base, conditioning)
    require_same_model(model, base, [clean], "vae")
    return clean


def measure(model, tuned, sets, draws, seed, beta=implicit.BETA):
    """Implicit rewards, [draws, N], of each set of candidates (Trajectories or CleanCandidates).

    All sets go through one model and then through the other, as changing the weights takes long.
    """
    bar = comfy.utils.ProgressBar(2 * draws * sum(s.count for s in sets))

    def work(session):
        return [errors(session, host.finished(model, s)) for s in sets]

    def errors(session, clean):
        denoise = session.denoiser(clean, guidance=1.0)

        def watched(x, sigma):
            bar.update(len(x))
            return denoise(x, sigma)

        return implicit.errors(
            clean, watched, draws, generator_of(JUDGE, seed, clean.set_id), session.device, PER_PASS
        )

    reference, policy = (host.evaluate_inside(m, sets, work, PER_PASS) for m in (model, tuned))
    return [implicit.rewards(error, ref_error, beta) for error, ref_error in zip(policy, reference)]


def ranked(mean, order):
    """ "2 > 1 = 3": numbers from 1, best first."""
    numbers = [str(int(i) + 1) for i in order]
    signs = [" > " if mean[a] > mean[b] else " = " for a, b in zip(order, order[1:])]
    return numbers[0] + "".join(sign + number for sign, number in zip(signs, numbers[1:]))


def report(rewards, noun):
    if not rewards.any():
        return SAME
    mean, error = rewards.mean(0), implicit.standard_error(rewards)
    order = mean.argsort(descending=True, stable=True)
    apart, noise = implicit.differences(rewards)
    doubtful = [
        f"{a + 1} and {b + 1}"
        for a, b in zip(order.tolist(), order[1:].tolist())
        if apart[a, b] <= DOUBT * noise[a, b]
    ]
    lines = [
        f"{noun} {i}: {m:.4g} ± {e:.2g}" for i, (m, e) in enumerate(zip(mean.tolist(), error.tolist()), 1)
    ]
    lines.append(f"ranking: {ranked(mean, order)}")
    if doubtful:
        lines.append(
            f"Not beyond noise, at most {DOUBT:g} standard errors apart: {', '.join(doubtful)}. More draws "
            "may tell them apart"
        )
    return "\n".join(lines)


def accuracy_figures(result, margins):
    """{name: number} of all that the report says in numbers; low and high are the accuracy's 95% interval."""
    return {
        metrics.ACCURACY: result.share,
        "low": result.low,
        "high": result.high,
        metrics.MARGIN: result.margin,
        "pairs": sum(map(len, margins)),
        "sets": len(margins),
        "worth": result.worth,
    }


def accuracy_report(figures, differ):
    low, high = figures["low"], figures["high"]
    yield f"implicit accuracy: {figures[metrics.ACCURACY]:.3g} (95% interval {low:.2g} to {high:.2g})"
    yield f"margin: {figures[metrics.MARGIN]:.4g}"
    yield (
        f"{figures['pairs']} pairs in {figures['sets']} sets, worth {figures['worth']:.0f} independent ones"
    )
    if not differ:
        yield SAME
    elif low <= 0.5 <= high:
        yield "Not beyond chance: 0.5 lies in the interval. More sets make it narrower"
