"""Scorers by models from files, in the running host."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from d3po_core.candidates.blip import PIXEL_MEAN, PIXEL_STD, Blip
from tests.core.test_blip import PATCH, SIDE, image_reward, vocabulary
from tests.core.test_onnx_models import write
from tests.host.graphs import found, node, says
from tests.host.test_scores import scored

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
    write(folder / "colours.onnx", ("n", 3, 10, 10))
    write(folder / "flat.onnx", (1, 3, 10), (1,))
    for name in ("ImageReward.pt", "broken.onnx"):
        (folder / name).write_bytes(b"")
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


def onnx(file):
    return node("D3POONNXScorer", file=file, preparation="RGB from 0 to 1", output=-1, size=0)


def test_a_model_in_onnx_scores_candidates(host, judges):
    graph = scored({}, scores_1=["scorer", 0]) | {"scorer": onnx("colours.onnx")}
    (text,) = host.run(graph)["outputs"]["judge"]["text"]
    numbers = [float(line.split(": ")[1]) for line in text.splitlines()]
    assert len(numbers) == 6 and all(0.2 < number < 0.6 for number in numbers) and len({*numbers}) == 6, text


@pytest.mark.parametrize("file, words", [
    ("flat.onnx", "file: flat.onnx: it takes pixels [1, 3, 10] (tensor(float)), and a model of pictures"),
    ("broken.onnx", "file: broken.onnx: onnxruntime cannot read it"),
    ("ImageReward.pt", "file: ImageReward.pt may run code when it is read. Convert it once"),
    ("foreign.safetensors", "file: foreign.safetensors: this is neither ImageReward, whose tensors are"),
    ("alone/reward.safetensors", "vocab.txt is not beside it. Put the vocab.txt of bert-base-uncased"),
])  # fmt: skip
def test_what_is_no_judge_is_told(failure, judges, file, words):
    scorer = onnx(file) if file.endswith("onnx") else node("D3POImageRewardScorer", file=file)
    says(failure(seen(scorer)), scorer["class_type"], words)
