"""Scorers by models from files, in the running host."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from d3po_core.candidates.blip import PIXEL_MEAN, PIXEL_STD, Blip
from tests.core.test_blip import PATCH, SIDE, image_reward, vocabulary
from tests.host.graphs import found, node, says

PROMPT = "a cat on red"
IMAGES = torch.rand(2, 60, 40, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def judges(base):
    """The folder of models that judge pictures, with a small ImageReward in it."""
    folder = base / "models" / "aesthetic"
    (folder / "alone").mkdir(parents=True)
    vocabulary(folder)
    save_file(image_reward().state_dict(), folder / "reward.safetensors")
    save_file(image_reward().state_dict(), folder / "alone" / "reward.safetensors")
    save_file({"weight": torch.zeros(1)}, folder / "foreign.safetensors")
    (folder / "ImageReward.pt").write_bytes(b"")
    return folder


def seen(scorer, prompt=PROMPT):
    """What a probe within a train step sees of a scorer."""
    pixels = json.dumps(IMAGES.tolist())
    return {
        "scorer": scorer,
        "see": node("TestProbeScorer", scorer=["scorer", 0], pixels=pixels, prompt=prompt),
    }


def test_image_reward_scores_with_gradients_and_is_held_by_the_host(host, judges):
    entry = found(host.run(seen(node("D3POImageRewardScorer", file="reward.safetensors"))), "see")
    images = IMAGES.clone().requires_grad_()
    pixels = resize(images.movedim(-1, 1), SIDE * PATCH, InterpolationMode.BICUBIC, antialias=True)
    mean, std = (torch.tensor(each)[:, None, None] for each in (PIXEL_MEAN, PIXEL_STD))
    pixels = (center_crop(pixels, SIDE * PATCH).clamp(0, 1) - mean) / std
    scores = Blip.of(image_reward().state_dict())(pixels, [2, 4, 5, 7, 8, 3])
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert (entry["name"], entry["models"]) == ("ImageReward", 1)
    torch.testing.assert_close(torch.tensor(entry["scores"]), scores.detach(), rtol=1e-4, atol=1e-4)
    most = float(gradient.abs().max())
    torch.testing.assert_close(torch.tensor(entry["gradient"]), gradient, rtol=1e-3, atol=1e-3 * most)


@pytest.mark.parametrize("file, words", [
    ("ImageReward.pt", "file: ImageReward.pt may run code when it is read. Convert it once"),
    ("foreign.safetensors", "file: foreign.safetensors: this is neither ImageReward, whose tensors are"),
    ("alone/reward.safetensors", "vocab.txt is not beside it. Put the vocab.txt of bert-base-uncased"),
])  # fmt: skip
def test_what_is_no_judge_is_told(failure, judges, file, words):
    says(failure(seen(node("D3POImageRewardScorer", file=file))), "D3POImageRewardScorer", words)
