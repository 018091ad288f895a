"""What has been learned from picks as a scorer: a taste, and a LoRA's implicit reward."""

from comfy_api.latest import io

from ..d3po_core.candidates.scorers import Scorer
from . import host
from .implicit import DRAWS, JUDGE, MODEL, SEED, TUNED, encoded, measure, require_tuned
from .stored import told, version
from .taste import accuracy, earlier_input, learned_outputs, look, picks_in, picks_input, report, taste_of
from .train.report import as_data
from .types import CATEGORY, ScorerType

FOR = "Wire to D3PO Best of N, D3PO Noise Search or a score of D3PO Score Preference."
NOT_TRUSTED = (
    "That is not beyond chance: the scorer may prefer anything. More picks, or clearer ones, make it surer"
)


class D3POTasteScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POTasteScorer",
            display_name="D3PO Taste Scorer",
            category=CATEGORY,
            search_aliases=[
                "taste",
                "my taste",
                "personal reward model",
                "aesthetic",
                "learn from few picks",
            ],
            description="Learns your taste from your picks, and gives it as a scorer, by which other nodes "
            "find what you will like. It sees images by the model's own features.",
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, on which your picks were recorded."),
                io.Vae.Input("vae", tooltip="The model's VAE, for the images."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompt under which images are looked at: that of the images to judge.",
                ),
                picks_input(),
                earlier_input(),
            ],
            outputs=[
                ScorerType.Output(display_name="scorer", tooltip=FOR),
                *learned_outputs(),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        return version(None)  # of all datasets, as the host does not tell which one a wire brings

    @classmethod
    def execute(cls, model, vae, positive, preferences, dataset=(None,)):
        model, vae, positive = model[0], vae[0], positive[0]
        host.require_plain(positive, "positive")
        picks = picks_in(model, preferences, dataset[0])
        if not picks.judged:
            raise ValueError(
                "preferences: there is no preference to learn a taste from yet. Pick between candidates first"
            )
        taste, _, places = taste_of(model, picks)
        base = host.fingerprint(model)

        def judge(images, prompt):
            (features,), _ = look(model, [encoded(model, vae, positive, images, base)], places)
            return taste.liking(features)

        warned = [] if taste.trusted else [NOT_TRUSTED]
        text = told("\n".join([*report(taste, picks), *warned]), picks.left_out)
        figures = {"accuracy": accuracy(taste)}
        return io.NodeOutput(
            Scorer("taste", judge, prepare=refuse_training),
            accuracy(taste),
            text,
            ui={"text": [text], "warnings": warned, "figures": [as_data(figures)]},
        )


class D3POImplicitScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POImplicitScorer",
            display_name="D3PO Implicit Scorer",
            category=CATEGORY,
            search_aliases=["implicit reward", "reward model", "lora as judge", "self rewarding"],
            description="What a LoRA has learned to prefer as a scorer: how much better the tuned model "
            "denoises an image than the base model does (Diffusion-DPO's implicit reward, arXiv 2311.12908).",
            inputs=[
                io.Model.Input("model", **MODEL),
                io.Model.Input("tuned", **TUNED),
                io.Vae.Input("vae", tooltip="The model's VAE, for the images."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompt under which images are looked at: that of the images to judge.",
                ),
                io.Int.Input("draws", **DRAWS),
                io.Int.Input("seed", **SEED),
            ],
            outputs=[ScorerType.Output(display_name="scorer", tooltip=FOR)],
        )

    @classmethod
    def execute(cls, model, tuned, vae, positive, draws, seed):
        base = require_tuned(model, tuned)
        host.require_plain(positive, "positive")

        def judge(images, prompt):
            clean = encoded(model, vae, positive, images, base)
            (rewards,) = measure(model, tuned, [clean], draws, seed)
            return rewards.mean(0)

        return io.NodeOutput(Scorer(JUDGE, judge, prepare=refuse_training))


def refuse_training(prompts):
    """What such a Scorer prepares for a train step, whose LoRA would be in the network that it looks with."""
    raise ValueError("it looks with the model that is being trained. Wire a scorer of pixels here")
