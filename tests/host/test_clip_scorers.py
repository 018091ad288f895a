"""Scorers by CLIP's embeddings against transformers' CLIP of the same weights, and rules over them."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.host.graphs import found, node, probe, says, stage, unique
from tests.host.test_scores import scored
from tests.host.test_workflows import AESTHETIC, AI_FEEDBACK, FILES, all_of, one, tiny
from tools.host import comfyui_folder
from tools.workflow import MUTED, load

SHAPE = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, hidden_act="quick_gelu")
TEXT = SHAPE | dict(hidden_size=32)
VISION = SHAPE | dict(hidden_size=48, image_size=28, patch_size=7)
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PROMPT = "a cat on a red background"


@pytest.fixture(scope="module")
def networks(base):
    """A small CLIP, and a predictor on another's pictures; their files are in the host's models."""
    torch.manual_seed(0)
    texts, heads = base / "models" / "text_encoders", base / "models" / "aesthetic"
    texts.mkdir(parents=True, exist_ok=True)
    heads.mkdir(exist_ok=True)
    clip = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=32)).eval()
    wide = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=768)).eval()
    inner = nn.Sequential(*(nn.Linear(*widths) if widths else nn.Identity() for widths in (
        (768, 1024), None, (1024, 128), None, (128, 64), None, (64, 16), (16, 1))))  # fmt: skip
    for network in (clip, wide, inner):
        for parameter in network.parameters():  # biases begin at 0: each should matter
            moved = parameter.data + 0.05 * torch.randn_like(parameter)
            parameter.data = moved.half().float()  # as the host holds them
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, texts / "small.safetensors")
    save_file({k: v.contiguous() for k, v in wide.state_dict().items()}, texts / "wide.safetensors")
    save_file(nn.ModuleDict({"layers": inner}).state_dict(), heads / "head.safetensors")
    save_file({"weight": torch.zeros(1)}, heads / "other.safetensors")
    (heads / "old.pth").write_bytes(b"")
    return clip, wide, inner


def small(name, width):
    """The CLIP in the host, whose pictures have so many numbers."""
    vision = VISION | dict(projection_dim=width, model_type="clip_vision_model", num_channels=3)
    config = json.dumps({"vision": vision, "text": TEXT})
    return node("TestSmallCLIP", pictures=f"{name}.safetensors", texts="small.safetensors", config=config)


def scorers(rule="a - 2 * b"):
    return {
        "small": small("small", 32),
        "wide": small("wide", 768),
        "fit": node("D3POCLIPScorer", clip_vision=["small", 0], clip=["small", 1]),
        "looks": node("D3POAestheticScorer", clip_vision=["wide", 0], head="head.safetensors"),
        "both": node("D3PORuleScorer", a=["fit", 0], b=["looks", 0], rule=rule),
    }


def pixels_of(images):
    pixels = resize(images.movedim(-1, 1), 28, InterpolationMode.BICUBIC, antialias=True)
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    return (center_crop(pixels, 28).clamp(0, 1) - mean) / std


def by_transformers(networks, images):
    """(fit, looks), [N] each."""
    clip, wide, inner = networks
    tokens = CLIPTokenizer.from_pretrained(comfyui_folder() / "comfy" / "sd1_tokenizer")(
        PROMPT, return_tensors="pt"
    )
    pixels = pixels_of(images)
    made = clip(**tokens, pixel_values=pixels)
    embeddings = wide(pixel_values=pixels).image_embeds
    return 100 * made.image_embeds @ made.text_embeds[0], inner(F.normalize(embeddings, dim=-1))[:, 0]


def test_scores_and_their_gradients_are_transformers_own(host, networks):
    images = torch.rand(2, 60, 40, 3, generator=torch.Generator().manual_seed(1))
    graph = scorers() | {
        f"see {name}": node(
            "TestProbeScorer", scorer=[name, 0], pixels=json.dumps(images.tolist()), prompt=PROMPT)
        for name in ("fit", "looks", "both")
    } | {"twin": probe("Twin", "wide")}  # fmt: skip
    entry = host.run(graph)
    images.requires_grad_()
    fit, looks = by_transformers(networks, images)
    expected = {"fit": fit, "looks": looks, "both": fit - 2 * looks}
    for name, scores in expected.items():
        seen = found(entry, f"see {name}")
        (gradient,) = torch.autograd.grad(scores.sum(), images, retain_graph=True)
        torch.testing.assert_close(torch.tensor(seen["scores"]), scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.tensor(seen["gradient"]), gradient, rtol=1e-3, atol=1e-5)
        assert gradient.abs().max() > 1e-3 and seen["models"] == (2 if name == "both" else 1)
    assert found(entry, "see both")["name"] == ("a - 2 * b of a: CLIP score, b: aesthetic rating by head")
    assert found(entry, "twin") == {"same": True, "shared": 0, "paged": False}


def test_a_lora_learns_along_them_and_they_judge_candidates(host, networks):
    graph = scorers() | stage() | {
        "positive": node("CLIPTextEncode", clip=["loader", 1], text=PROMPT),
        "train": node(
            "D3PORewardTrainStep", model=["loader", 0], vae=["loader", 2], scorer=["both", 0],
            second_scorer=["looks", 0], positive=["positive", 0], negative=["negative", 0],
            latent_image=["empty", 0], seed=0, steps=2, cfg=2.0, scheduler="normal", method="ReFL", updates=1,
            learning_rate=1e-3, leash=0.0, pictures=1, last_steps=0, rank=1, targets="attention"),
        "losses": probe("LossMap", "train", 2),
        **scored({}, scores_1=["fit", 0], prompt=["prompt", 0]),
        "prompt": node("PrimitiveString", value=PROMPT),
    }  # fmt: skip
    entry = host.run(graph)
    assert found(entry, "losses")["gradient_norm"][0] > 0
    assert [len(one["pairs"]) for one in found(entry, "look")] == [3, 3]


def with_its_files(name, rule, object_info, tmp_path, **named):
    """A template whose muted nodes are not, with its rule written as its note says, and with small CLIPs for
    the files that the note says to download."""
    workflow = load(FILES[name])
    for own in workflow["nodes"]:
        own["mode"] = 0 if own["mode"] == MUTED else own["mode"]
    file = tmp_path / "template.json"
    file.write_text(json.dumps(workflow), "utf-8")
    prompt = tiny(file, object_info, unique("files"), rule=rule, head="head.safetensors", **named)
    for loader in ("CLIPVisionLoader", "CLIPLoader"):
        del prompt[one(prompt, loader)]
    graph = {"small": small("small", 32), "wide": small("wide", 768)}
    prompt[one(prompt, "D3POCLIPScorer")]["inputs"] |= {"clip_vision": ["small", 0], "clip": ["small", 1]}
    for looks in all_of(prompt, "D3POAestheticScorer"):
        prompt[looks]["inputs"]["clip_vision"] = ["wide", 0]
    return prompt | graph


def above(prompt, node_id):
    """A node of a prompt with all that it needs."""
    sources = {value[0] for value in prompt[node_id]["inputs"].values() if isinstance(value, list)}
    return {node_id: prompt[node_id]} | {k: v for source in sources for k, v in above(prompt, source).items()}


def test_the_templates_judge_by_their_files_once_they_are_there(host, networks, object_info, tmp_path):
    prompt = with_its_files(AI_FEEDBACK, "b", object_info, tmp_path)
    judge = all_of(prompt, "D3POScorePreference")[0]
    (text,) = host.run(above(prompt, judge))["outputs"][judge]["text"]
    assert text.count("candidate ") == 4 and "missing" not in text
    prompt = with_its_files(AESTHETIC, "b", object_info, tmp_path)
    train = one(prompt, "D3PORewardTrainStep")
    prompt["report"] = node("PreviewAny", source=[train, 4])
    (figures,) = host.run(above(prompt, "report"))["outputs"][train]["figures"]
    assert figures["score gain"] and figures["second score gain"]


@pytest.mark.parametrize(
    "name, inputs, words",
    [
        ("fit", dict(clip_vision=["wide", 0]), "its texts have 32 numbers, and clip_vision's pictures 7"),
        ("fit", dict(clip=["loader", 1]), "clip: this text model came without its projection"),
        ("looks", dict(clip_vision=["small", 0]), "clip_vision: its pictures have 32 numbers"),
        ("looks", dict(head="old.pth"), "torch.load('old.pth', 'cpu', weights_only=True); s.save_file(t.g"),
        ("looks", dict(head="other.safetensors"), "head: other.safetensors: this is not the improved"),
        ("both", dict(rule="a + c"), "rule: it uses c, but no scorer is wired to c"),
        ("both", dict(rule="a + e"), "rule: 'a + e', character 5: e is no score"),
        ("judge", {}, "the scorer CLIP score failed on every image: it compares pictures with"),
    ],
)  # fmt: skip
def test_what_will_not_do_is_told(failure, networks, name, inputs, words):
    graph = scorers() | scored({}, scores_1=["both", 0]) | {"loader": stage()["loader"]}
    if name != "judge":
        graph[name]["inputs"] |= inputs
        graph["judge"]["inputs"]["scores_1"] = [name, 0]
    else:
        graph[name]["inputs"]["scores_1"] = ["fit", 0]
    says(failure(graph), graph[name]["class_type"], words)
