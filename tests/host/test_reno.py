"""ReNO: the noise of a picture of few steps led along a score's gradient, in the running host."""

import pytest
import torch

from d3po_core.candidates.objectives import brightness
from tests.host.graphs import TEXT, found, node, probe, says, stage


def reno(seed, steps, model=("loader", 0), vae=("loader", 2), name="reno", rate=0.5):
    """The node and a look at what it gives; the picture again by the host's own sampler of its noise."""
    graph = stage() | {
        "positive": node("CLIPTextEncode", clip=["loader", 1], text=TEXT),
        "bright": node("D3POObjectiveScorer", objective="brightness (brighter)", target_colour=""),
        "flow": node("UNETLoader", unet_name="flow.safetensors", weight_dtype="default"),
        "flow_vae": node("VAELoader", vae_name="flow.safetensors"),
        name: node(
            "D3PORENO", model=list(model), vae=list(vae), scorer=["bright", 0], positive=["positive", 0],
            negative=["negative", 0], latent_image=["empty", 0], seed=seed, steps=steps, cfg=2.0,
            iterations=4, learning_rate=rate),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        f"{name}_sigmas": node(
            "BasicScheduler", model=list(model), scheduler="simple", steps=steps, denoise=1.0),
        f"{name}_guider": node(
            "CFGGuider", model=list(model), positive=["positive", 0], negative=["negative", 0], cfg=2.0),
        f"{name}_again": node(
            "SamplerCustomAdvanced", noise=[name, 3], guider=[f"{name}_guider", 0], sampler=["euler", 0],
            sigmas=[f"{name}_sigmas", 0], latent_image=["empty", 0]),
        f"{name}_repeated": node("VAEDecode", samples=[f"{name}_again", 0], vae=list(vae)),
        f"{name}_sampled": probe("Value", f"{name}_repeated"),
    }  # fmt: skip
    outputs = {"image": 0, "before": 1, "score": 4, "history": 5, "report": 6}
    return graph | {f"{name}_{output}": probe("Value", name, slot) for output, slot in outputs.items()}


@pytest.mark.usefixtures("emoji_model")
def test_it_raises_the_score_of_epsilon_and_flow_models_and_euler_makes_the_same_of_its_noise(host):
    """The flow model has random weights, so that its pictures hardly depend on the noise: it goes further."""
    untouched = lambda: found(host.run(stage() | {"look": probe("Model", "loader")}), "look")
    before = untouched()
    entry = host.run(
        reno(1, 1, name="first")
        | reno(2, 3, name="second")
        | reno(3, 2, ("flow", 0), ("flow_vae", 0), name="third", rate=20.0)
    )
    for name in ("first", "second", "third"):
        image, first, sampled = (
            torch.tensor(found(entry, f"{name}_{output}")) for output in ("image", "before", "sampled")
        )
        score, history, report = (
            found(entry, f"{name}_{output}") for output in ("score", "history", "report")
        )
        assert len(history) == 5 and score == max(history) > history[0] + 1e-3, history
        assert float(brightness(image)[0]) == pytest.approx(score, abs=1e-5)
        assert float(brightness(first)[0]) == pytest.approx(history[0], abs=1e-5)
        torch.testing.assert_close(sampled, image, rtol=0, atol=2e-3)
        assert "4 updates; the best picture is that after" in report
    assert untouched() == before


def test_a_scorer_without_a_gradient_is_refused(failure):
    graph = reno(1, 1)
    graph["bright"] = node("TestScorer", numbers="{}")
    says(failure(graph), "D3PORENO", "scorer: of numbers has no gradient", "D3PO Noise Search")
