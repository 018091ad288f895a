"""The implicit reward in the graph: a LoRA that was taught brightness judges images that it has not seen."""

import math
import re

import numpy as np
import pytest
from PIL import Image

from d3po_core.dataset.store import Dataset
from tests.host.conftest import COLOURS
from tests.host.graphs import (
    Once,  # fmt: skip
    found,
    judged,
    messages,
    node,
    probe,
    recording,
    says,
    stage,
    train_nodes,
    unique,
    watch,
)

pytestmark = pytest.mark.usefixtures("emoji_models")

SHADES = [0.45, 1.0, 0.3, 0.75]  # darkest to brightest: 2, 0, 3, 1


def save_colour(path, colour, shade, seed, size=(32, 32)):
    pixels = np.array(colour) * shade + np.random.default_rng(seed).normal(0, 8, (*size, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def source(base):
    """Twelve pairs of plain colours in ComfyUI's input folder, the brighter one preferred."""
    root = base / "input" / unique("colours")
    for side, shade in {"w": 1.0, "l": 0.45}.items():
        for i, (name, colour) in enumerate(list(COLOURS.items()) * 2):
            save_colour(root / side / f"{i:02}.png", colour, shade, i + 100 * (side == "w"))
            (root / side / f"{i:02}.txt").write_text(f"a {name} background")
    return root.name


def pairs(source, dataset, split):
    return {
        "import": node("D3POImportPreferences", source=source, dataset=dataset, annotator="import",
                       problems="stop"),
        "pairs": node("D3POEncodePairs", model=["loader", 0], clip=["loader", 1], vae=["loader", 2],
                      dataset=["import", 0], split=split, held_out=0.5, annotators="", joining="all",
                      limit=0),
    }  # fmt: skip


@pytest.fixture(scope="module")
def taught(host, source):
    """(a dataset of pairs, the name of a LoRA trained on its training split, for the stock Load LoRA)."""
    dataset, name = unique("dataset"), unique("brightness")
    host.run(stage() | pairs(source, dataset, "train") | {
        **train_nodes(preferences=("pairs", 0), epochs=2, sets_per_update=3, learning_rate=3e-3, rank=4,
                            alpha=4.0, draws_per_set=2, targets="all linear and convolutions"),
        "save": node("D3POSaveLoRA", model=["loader", 0], lora=["train", 1], filename_prefix=f"loras/{name}",
                     naming="ComfyUI"),
    })  # fmt: skip
    return dataset, f"{name}_00001_.safetensors"


def tuned(taught, strength=1.0):
    return {
        "tuned": node(
            "LoraLoaderModelOnly", model=["loader", 0], lora_name=taught[1], strength_model=strength
        )
    }


@pytest.fixture(scope="module")
def images(base):
    """Nodes that load four red images of SHADES, of another size than the training's, as one batch."""
    folder, graph = unique("shades"), {}
    for i, shade in enumerate(SHADES):
        save_colour(base / "input" / folder / f"{i}.png", (230, 60, 60), shade, 1000 + i, size=(48, 32))
        graph[f"image{i}"] = node("LoadImage", image=f"{folder}/{i}.png")
    graph["two"] = node("ImageBatch", image1=["image0", 0], image2=["image1", 0])
    graph["three"] = node("ImageBatch", image1=["two", 0], image2=["image2", 0])
    graph["images"] = node("ImageBatch", image1=["three", 0], image2=["image3", 0])
    return graph


def reward(images, model=("loader", 0), tuned=("tuned", 0), **changes):
    return stage() | images | {
        "positive": node("CLIPTextEncode", clip=["loader", 1], text="a red background"),
        "reward": node("D3POImplicitReward", **(dict(
            model=list(model), tuned=list(tuned), vae=["loader", 2], positive=["positive", 0],
            images=["images", 0], draws=4, seed=1, beta=5000.0) | changes)),
        "rewards": node("PreviewAny", source=["reward", 2]),
        "ranking": node("PreviewAny", source=["reward", 3]),
        "ranked": node("PreviewImage", images=["reward", 0]),
        "best": node("PreviewImage", images=["reward", 1]),
    }  # fmt: skip


def rewards_of(entry):
    return [float(text) for text in entry["outputs"]["rewards"]["text"]]


def brightness(host, entry, name):
    return [np.asarray(host.image(image)).mean() for image in entry["outputs"][name]["images"]]


# --- ranking images ---


def test_it_ranks_bright_images_above_dark_ones(host, taught, images):
    entry = host.run(reward(images) | tuned(taught))
    rewards = rewards_of(entry)
    assert min(rewards[1], rewards[3]) > max(rewards[0], rewards[2]), rewards
    order = sorted(range(4), key=lambda i: -rewards[i])
    assert entry["outputs"]["ranking"]["text"] == [" > ".join(str(i + 1) for i in order)]
    light = brightness(host, entry, "ranked")
    assert np.argsort(light).tolist() == np.argsort([SHADES[i] for i in order]).tolist(), (
        "the images in that order"
    )
    assert brightness(host, entry, "best") == light[:1]
    (report,) = entry["outputs"]["reward"]["text"]
    told = [float(value) for value in re.findall(r"image \d: (\S+) ± ", report)]
    assert told == pytest.approx(rewards, rel=1e-3)


def test_beta_is_the_unit_and_the_seed_is_the_noise(host, taught, images):
    def ask(**changes):
        return np.array(rewards_of(host.run(reward(images, **changes) | tuned(taught))))

    as_usual = ask()
    assert ask(beta=10.0) == pytest.approx(as_usual / 500)
    other = ask(seed=2)
    assert abs(other - as_usual).min() > 0 and np.corrcoef(other, as_usual)[0, 1] > 0.9


def test_a_model_is_worth_exactly_nothing_to_itself(host, images):
    entry = host.run(reward(images, tuned=("loader", 0)))
    assert rewards_of(entry) == [0.0] * 4
    assert entry["outputs"]["ranking"]["text"] == ["1 = 2 = 3 = 4"]
    assert "exactly 0" in entry["outputs"]["reward"]["text"][0]


def test_a_lora_turned_round_is_worth_less(host, taught, images):
    rewards = rewards_of(host.run(reward(images) | tuned(taught, strength=-1.0)))
    assert max(rewards[1], rewards[3]) < min(rewards[0], rewards[2]), rewards


# --- agreement with held-out pairs ---


def accuracy(source, dataset, tuned="tuned", draws=4):
    return stage() | pairs(source, dataset, "held out") | {
        "accuracy": node("D3POImplicitAccuracy", model=["loader", 0], tuned=[tuned, 0],
                         preferences=["pairs", 0], draws=draws, seed=1),
        "share": node("PreviewAny", source=["accuracy", 0]),
        "margin": node("PreviewAny", source=["accuracy", 1]),
    }  # fmt: skip


def shares_of(entry):
    return [float(entry["outputs"][name]["text"][0]) for name in ("share", "margin")]


def test_it_agrees_with_pairs_that_were_held_out(host, taught, source):
    entry = host.run(accuracy(source, taught[0]) | tuned(taught))
    share, margin = shares_of(entry)
    (report,) = entry["outputs"]["accuracy"]["text"]
    assert share > 0.75 and margin > 0, report
    told, low, high = map(
        float, re.search(r"accuracy: (\S+) \(95% interval (\S+) to (\S+)\)", report).groups()
    )
    assert told == pytest.approx(share, abs=1e-3) and low < share <= high
    assert "exactly 0" not in report


def test_of_a_model_and_itself_every_pair_is_a_tie(host, taught, source):
    entry = host.run(accuracy(source, taught[0], tuned="loader", draws=2))
    assert shares_of(entry) == [0.5, 0.0]
    assert "exactly 0" in entry["outputs"]["accuracy"]["text"][0]


def test_recorded_candidates_can_be_measured_on_too(host, taught):
    graph = (
        judged(seed=301, candidates=4)
        | tuned(taught)
        | {
            "accuracy": node(
                "D3POImplicitAccuracy",
                model=["loader", 0],
                tuned=["tuned", 0],
                preferences=["judge", 0],
                draws=4,
                seed=1,
            )
        }
    )
    (report,) = host.run(graph)["outputs"]["accuracy"]["text"]
    assert "6 pairs in 1 sets, worth 1 independent" in report
    assert math.isfinite(float(re.search(r"margin: (\S+)", report)[1]))


def test_where_nothing_is_judged_yet_the_rest_of_the_graph_waits(host, taught):
    graph = judged(seed=302) | tuned(taught)
    graph["judge"]["inputs"]["least_difference"] = 1e6
    graph["accuracy"] = node(
        "D3POImplicitAccuracy",
        model=["loader", 0],
        tuned=["tuned", 0],
        preferences=["judge", 0],
        draws=4,
        seed=1,
    )
    graph["share"] = node("PreviewAny", source=["accuracy", 0])
    outputs = host.run(graph)["outputs"]
    assert "no strict preference" in outputs["accuracy"]["text"][0] and "share" not in outputs


# --- judging recordings ---


def judge(trajectory=("sampler", 0), images=("decode", 0), **changes):
    return {"judge": node("D3POImplicitPreference", **(dict(
        trajectory=list(trajectory), images=list(images), model=["loader", 0], tuned=["tuned", 0], draws=4,
        seed=1, least_difference=0.0) | changes)), "look": probe("Preferences", "judge")}  # fmt: skip


def test_it_judges_recorded_candidates_in_place_of_a_person(host, base, taught):
    dataset = unique("judged")
    graph = recording(seed=303, candidates=4) | tuned(taught) | {
        "decode": node("VAEDecode", samples=["sampler", 1], vae=["loader", 2]),
        "keep": node("D3POSaveToDataset", trajectory=["sampler", 0], images=["decode", 0], dataset=dataset,
                     annotator="me"),
        "all": node("PreviewImage", images=["decode", 0]), "mean": node("PreviewAny", source=["judge", 4]),
        "preferred": node("PreviewImage", images=["judge", 1]),
        "rejected": node("PreviewImage", images=["judge", 2]),
    } | judge(dataset=["keep", 2])  # fmt: skip
    entry = host.run(graph)
    seen = found(entry, "look")
    scores = np.array(seen["scores"])
    assert scores.shape == (4,) and len(set(scores)) == 4 and seen["source"] == "implicit reward"
    order = np.argsort(-scores).tolist()
    assert sorted(map(tuple, seen["pairs"])) == sorted(
        (order[i], order[j]) for i in range(4) for j in range(i + 1, 4)
    )
    light = brightness(host, entry, "all")
    assert brightness(host, entry, "preferred") == [light[order[0]]]
    assert brightness(host, entry, "rejected") == [light[order[-1]]]
    assert float(entry["outputs"]["mean"]["text"][0]) == pytest.approx(scores.mean())
    with Dataset(base / "output" / "d3po" / "datasets" / dataset, create=False) as store:
        (kept,) = store.judgements(seen["set_id"])
    assert kept.annotator == "implicit reward" and sorted(kept.judgement.as_json["pairs"]) == sorted(
        seen["pairs"]
    )
    graph["judge"]["inputs"] |= {"least_difference": 100.0, "dataset": ["keep", 2]}
    graph["look"] = probe("Preferences", "judge")
    assert found(host.run(graph), "look")["pairs"] == []


def test_several_sets_are_judged_together_and_train_a_lora(host, taught):
    graph = judged(candidates=3) | tuned(taught) | judge()
    graph["sampler"]["inputs"]["seed"] = ["prompts", 1]
    graph |= {
        "prompts": node("D3POPrompts", prompts="a\nb", count=2, seed=3),
        **train_nodes(),
        "losses": probe("LossMap", "train", 2),
    }
    entry = host.run(graph)
    assert [len(seen["pairs"]) for seen in found(entry, "look")] == [3, 3]
    assert len(found(entry, "losses")["loss"]) == 2


# --- what must not happen ---


def test_the_models_are_left_as_they_were_also_by_an_interrupt(host, taught, images):
    def look():
        entry = host.run(
            stage() | tuned(taught) | {"base": probe("Model", "loader"), "with_lora": probe("Model", "tuned")}
        )
        return found(entry, "base"), found(entry, "with_lora")

    before = look()
    assert before[0]["patches"] == [] and before[1]["patches"]
    host.run(reward(images, seed=7) | tuned(taught))
    assert look() == before
    interrupt = Once(host.interrupt, "reward")
    entry, _ = watch(host, reward(images, draws=1000) | tuned(taught), interrupt)
    assert interrupt.done
    (told,) = messages(entry, "execution_interrupted")
    assert told["node_type"] == "D3POImplicitReward"
    assert look() == before


def test_another_base_model_is_no_tuned_one(failure, images):
    other = {"other": node("UNETLoader", unet_name="other.safetensors", weight_dtype="default")}
    says(
        failure(reward(images, tuned=("other", 0)) | other),
        "D3POImplicitReward",
        "tuned",
        "another base model",
    )


def test_both_models_read_their_network_alike(failure, images):
    other = {"other": node("ModelSamplingDiscrete", model=["loader", 0], sampling="v_prediction", zsnr=False)}
    says(failure(reward(images, tuned=("other", 0)) | other), "D3POImplicitReward", "tuned", "ModelSampling")


def test_candidates_of_another_model_are_not_judged(failure):
    graph = (
        judged(seed=304)
        | judge(model=["other", 0], tuned=["other", 0])
        | {"other": node("UNETLoader", unet_name="other.safetensors", weight_dtype="default")}
    )
    says(failure(graph), "D3POImplicitPreference", "trajectory", "another model")


def test_a_latent_that_is_not_finite_is_told(failure, taught):
    graph = judged(seed=305) | tuned(taught) | judge(trajectory=("spoil", 0))
    graph["spoil"] = node("TestSpoilTrajectory", trajectory=["sampler", 0], how="nan")
    says(failure(graph), "D3POImplicitPreference", "implicit reward is not a finite number", "bf16 or fp32")
