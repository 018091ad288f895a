"""Pictures of different shapes, videos of different lengths and prompts of different lengths in one train
step."""

import math

import pytest

from tests.host.graphs import found, node, probe, train_nodes
from tests.host.test_families import CANDIDATES

SETS = 3


@pytest.mark.parametrize("name", ["SDXL", "Flux", "Z-Image", "Wan"])
def test_sets_of_other_shapes_and_lengths_train_together(host, name):
    graph = {
        "family": node("TestShapes", name=name),
        "sampler": node(
            "D3POKSampler", model=["family", 0], seed=3, steps=3, cfg=2.0, sampler_name="euler_ancestral",
            scheduler="simple", positive=["family", 1], negative=["family", 2], latent_image=["family", 3],
            denoise=1.0, candidates=CANDIDATES, eta=1.0),
        "pictures": node("TestCandidates", seed=3, candidates=CANDIDATES, sets=SETS, size=16),
        "judge": node(
            "D3POObjectivePreference", trajectory=["sampler", 0], images=["pictures", 1],
            objective="brightness (brighter)", second_objective="none", target_colour="#ff8800",
            least_difference=0.0),
        **train_nodes(model=("family", 0), sets_per_update=SETS),
        "losses": probe("LossMap", "train", 2),
        "recommended": node("D3POTrainStep", model=["family", 0], preferences=["judge", 0],
                            method="Diffusion-DPO", strength="recommended", epochs=2, rank=2,
                            targets="all linear"),
        "dpo": probe("LossMap", "recommended", 2),
        "taste": node("D3POTastePreference", preferences=["judge", 0], trajectory=["sampler", 0],
                      model=["family", 0]),
        "by_taste": probe("Preferences", "taste"),
    }  # fmt: skip
    entry = host.run(graph)
    losses, dpo = found(entry, "losses"), found(entry, "dpo")
    assert losses["winner_log-ratio"] == losses["KL_to_reference"] == [0.0]
    assert losses["loss"] == [pytest.approx(math.log(2), abs=1e-6)] and losses["gradient_norm"][0] > 0
    assert dpo["loss"][0] == pytest.approx(math.log(2), abs=1e-6) and dpo["margin"][-1] > 0
    (figures,) = entry["outputs"]["recommended"]["figures"]
    assert math.isfinite(figures["pictures moved"])
