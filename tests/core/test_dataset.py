import re
from datetime import timedelta

import numpy as np
import pytest
import torch

from d3po_core.candidates.judgement import Judgement
from d3po_core.dataset.store import Dataset, DatasetError
from tests.core.datasets import (
    NOON,
    TREE,
    WINNER_0,
    WINNER_1,
    equal,
    files_of,
    judge,
)


@pytest.fixture
def dataset(tmp_path):
    with Dataset(tmp_path / "taste") as dataset:
        yield dataset


@pytest.fixture
def trajectory(toy):
    return toy.record(toy.Denoiser(toy.net()), seed=7)


# --- what a set holds ---


def test_a_set_comes_back_as_it_was_added_also_after_opening_again(dataset, trajectory):
    images = torch.rand(3, 8, 6, 3)
    trajectory.settings = {"seed": 2**64 - 1, "cfg": 7.5}
    assert dataset.add_set(
        "set 7",
        trajectory=trajectory,
        images=images,
        conditioning=TREE,
        prompt="ein Bär",
        model_name="dreams",
        created=NOON,
    )
    dataset.close()
    with Dataset(dataset.folder, create=False) as again:
        loaded = again.trajectory("set 7")
        assert loaded.conditioning is None
        for name in ("states", "denoised", "sigmas"):
            assert torch.equal(getattr(loaded, name)[:], getattr(trajectory, name))
        assert (loaded.kernel, loaded.policy, loaded.settings) == (
            trajectory.kernel,
            "base",
            trajectory.settings,
        )
        assert (again.images("set 7") - images).abs().max() <= 0.5 / 255 + 1e-6
        assert equal(again.conditioning("set 7"), TREE) and again.settings("set 7") == trajectory.settings
        (row,) = again.sets()
        assert (row.id, row.created, row.candidates, row.prompt) == ("set 7", NOON, 3, "ein Bär")
        assert (row.model, row.model_name) == ("net", "dreams")
        assert row.has_trajectory and row.has_images and row.has_conditioning


def test_a_set_of_images_alone_has_neither_trajectory_nor_conditioning(dataset):
    assert dataset.add_set("old pictures", images=np.random.rand(2, 4, 4, 3), settings={"from": "a folder"})
    assert dataset.trajectory("old pictures") is None and dataset.conditioning("old pictures") is None
    assert dataset.images("old pictures").shape == (2, 4, 4, 3)
    assert [path.suffix for path in dataset.image_files("old pictures")] == [".png", ".png"]
    row = dataset.find("old pictures")
    assert not row.has_trajectory and not row.has_conditioning and row.has_images and row.prompt is None


def test_images_outside_0_to_1_and_not_a_number_are_brought_inside(dataset):
    image = torch.tensor([-1.0, float("nan"), 0.25, 1.0, 2.0, float("inf")]).view(1, 2, 1, 3)
    dataset.add_set("s", images=image)
    assert dataset.images("s").mul(255).round().flatten().tolist() == [0, 0, 64, 255, 255, 255]


def test_adding_a_set_again_changes_nothing_but_fills_in_what_was_missing(dataset, trajectory):
    first, second = torch.zeros(3, 4, 4, 3), torch.ones(3, 4, 4, 3)
    assert dataset.add_set("set 7", trajectory=trajectory, model_name="first")
    assert not dataset.add_set(
        "set 7", trajectory=trajectory, images=first, prompt="one", model_name="second"
    )
    assert not dataset.add_set("set 7", images=second, prompt="two")
    row = dataset.find("set 7")
    assert (row.prompt, row.model_name) == ("one", "first") and dataset.images("set 7").max() == 0
    assert len(files_of(dataset, "sets")) == 1 and len(files_of(dataset, "images")) == 3


def test_who_comes_second_leaves_no_files(dataset, trajectory, monkeypatch):
    monkeypatch.setattr(
        dataset, "find", lambda set_id: None
    )  # as it is for one who looked just before another added
    for _ in range(2):
        dataset.add_set("set 7", trajectory=trajectory, images=torch.rand(3, 4, 4, 3), conditioning=TREE)
    assert [len(files_of(dataset, kind)) for kind in ("sets", "images", "conditioning")] == [1, 3, 1]


def test_alike_conditioning_is_stored_once(dataset):
    for i in range(3):
        dataset.add_set(
            f"s{i}", candidates=2, conditioning={"positive": [torch.ones(3)], "negative": torch.ones(3)}
        )
    dataset.add_set(
        "other dtype",
        candidates=2,  # the same bytes
        conditioning={"positive": [torch.ones(3).view(torch.int32)], "negative": torch.ones(3)},
    )
    dataset.add_set(
        "other shape", candidates=2, conditioning={"positive": [torch.ones(1, 3)], "negative": torch.ones(3)}
    )
    assert len(files_of(dataset, "conditioning")) == 3


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(3),
        torch.zeros(0, 2),
        torch.ones(2, 2, dtype=torch.bfloat16),
        torch.tensor([True]),
        torch.arange(12).view(3, 4).t(),
        torch.arange(9)[::2],
        torch.nn.Parameter(torch.ones(2)),
        float("inf"),
        float("nan"),
        -0.0,
        "\ud800",
        "",
        [],
        {},
        (),
        {"dict": {"tensor": "x"}},
        [[{"": (1, [2.5])}]],
        10**30,
        None,
    ],
    ids=repr,
)
def test_every_kind_of_value_in_conditioning_comes_back(dataset, value):
    dataset.add_set("s", candidates=2, conditioning={"value": value})
    expected = value.detach() if isinstance(value, torch.Tensor) else value
    assert equal(dataset.conditioning("s"), {"value": expected})


def test_tensors_that_share_memory_can_be_stored(dataset):
    base = torch.arange(8.0)
    value = [base, base, base.view(2, 4), base[2:5]]
    dataset.add_set("s", candidates=2, conditioning=value)
    assert equal(dataset.conditioning("s"), value)


@pytest.mark.parametrize(
    "value, place",
    [
        ({"positive": [(0, {"control": object()})]}, "positive[0][1].control is a object"),
        ([{"a": {1, 2}}], "[0].a is a set"),
        ({"a": {1: 2}}, "a has the key 1"),
        (object(), "conditioning is a object"),
        ({"a": np.ones(2)}, "a is a ndarray"),
        ({"a": torch.ones(2).to_sparse()}, "a is a Tensor"),
        ({"a": torch.ones(2, device="meta")}, "a is a Tensor"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "a is a Tensor"),
    ],
)
def test_what_cannot_be_stored_is_named_by_its_path_and_leaves_nothing(dataset, trajectory, value, place):
    with pytest.raises(TypeError, match="^" + re.escape(place)):
        dataset.add_set("set 7", trajectory=trajectory, conditioning=value)
    assert not dataset.sets() and not files_of(dataset, "sets")


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "one number of candidates"),
        ({"candidates": 0}, "one number of candidates"),
        ({"images": torch.rand(2, 4, 4, 3), "candidates": 3}, "'candidates': 3, 'images': 2"),
        ({"images": torch.rand(2, 3, 4, 4)}, r"images must be \[N, H, W, 3\]"),
        ({"candidates": 2, "settings": {"a": object()}}, "not JSON"),
        ({"candidates": 2, "settings": {"a": float("nan")}}, "JSON"),
    ],
)
def test_a_set_that_does_not_fit_itself_is_refused(dataset, given, message):
    with pytest.raises(ValueError, match=message):
        dataset.add_set("s", **given)
    assert not dataset.sets()


def test_a_set_that_does_not_fit_its_name_or_its_first_version_is_refused(dataset, trajectory):
    for name in ("", None, 7, b"s"):
        with pytest.raises(ValueError, match="named by text"):
            dataset.add_set(name, candidates=2)
    with pytest.raises(ValueError, match="of set 'set 7', not of 's'"):
        dataset.add_set("s", trajectory=trajectory)
    dataset.add_set("set 7", candidates=2)
    with pytest.raises(ValueError, match="has 2 candidates, not 3"):
        dataset.add_set("set 7", trajectory=trajectory)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "C:\\x", "a/b", "..", "CON", "x\0y", "漢字", "x" * 5000, "'; --"]
)
def test_any_text_can_name_a_set_and_none_becomes_a_path(dataset, name):
    dataset.add_set(name, images=torch.rand(2, 4, 4, 3))
    judge(dataset, name, WINNER_0, name)
    assert dataset.pairs(name) == [(0, 1)] and dataset.find(name).id == name
    assert re.fullmatch(
        r"images/[0-9a-f]{2}/[0-9a-f-]+\.png",
        dataset.image_files(name)[0].relative_to(dataset.folder).as_posix(),
    )


def test_a_set_that_is_not_there_is_an_error_that_names_it(dataset):
    for ask in (
        dataset.trajectory,
        dataset.images,
        dataset.image_files,
        dataset.conditioning,
        dataset.settings,
        dataset.judgements,
        dataset.pairs,
        lambda name: judge(dataset, name, WINNER_0, "anna"),
        lambda name: judge(dataset, name, None, "anna"),
    ):
        with pytest.raises(DatasetError, match="there is no set 'x'"):
            ask("x")
    assert dataset.find("x") is None


# --- judgements ---


def test_the_newest_judgement_of_an_annotator_counts_and_the_history_stays(dataset):
    dataset.add_set("s", candidates=2)
    judge(dataset, "s", WINNER_0, "anna", tool="picker 0.1.0", time=NOON)
    judge(
        dataset, "s", WINNER_1, "anna", time=NOON - timedelta(days=1)
    )  # a clock that is slow does not decide
    assert dataset.pairs("s") == [(1, 0)]
    judge(dataset, "s", None, "anna")
    assert dataset.pairs("s") == [] and dataset.sets(judged=True) == []
    judge(dataset, "s", WINNER_0, "anna")
    assert dataset.pairs("s") == [(0, 1)]
    history = dataset.judgements("s")
    assert [entry.judgement and entry.judgement.as_json for entry in history] == [
        WINNER_0,
        WINNER_1,
        None,
        WINNER_0,
    ]
    assert (history[0].annotator, history[0].time, history[0].tool) == ("anna", NOON, "picker 0.1.0")


def test_an_unfinished_judgement_is_kept_but_does_not_count(dataset):
    dataset.add_set("s", candidates=3)
    judge(dataset, "s", {"pairs": [[0, 1]], "open": True}, "anna")
    assert dataset.pairs("s") == [] and not dataset.sets(judged=True) and len(dataset.sets(judged=False)) == 1
    assert dataset.judgements("s")[0].judgement.as_json == {"pairs": [[0, 1]], "open": True}
    assert dataset.statistics()["judgements"] == 0


@pytest.mark.parametrize(
    "judgement, message",
    [
        ({}, "must be an object"),
        ([], "must be an object"),
        ({"pairs": [[0, 2]]}, "no candidate 2"),
        ({"pairs": [[0, 1], [1, 0]]}, "picked over"),
        ({"winner": 0}, "no field 'winner'"),
        ({"scores": [1.0]}, "1 scores for 2"),
        ({"scores": [1.0, float("nan")]}, "not a finite"),
        ({"pairs": [[0, 1]], "log": {"x": float("nan")}}, "not a finite"),
        ({"pairs": [[0, 1]], "log": {"x": object()}}, "JSON"),
    ],
)
def test_a_malformed_judgement_is_refused_and_not_kept(dataset, judgement, message):
    dataset.add_set("s", candidates=2)
    with pytest.raises(ValueError, match=message):
        judge(dataset, "s", judgement, "anna")
    assert dataset.judgements("s") == []


def test_a_judgement_of_another_number_of_candidates_is_refused_and_not_kept(dataset):
    dataset.add_set("s", candidates=2)
    with pytest.raises(ValueError, match="set 's' has 2 candidates, and 3 were judged"):
        dataset.judge("s", Judgement.of_pairs([(0, 1)], 3), "anna")
    assert dataset.judgements("s") == []


def test_half_a_character_is_an_error_that_names_the_text_and_changes_nothing(dataset):
    images, half = torch.zeros(2, 4, 4, 3), "x\ud800"
    dataset.add_set("s", images=images)
    before = files_of(dataset, "images")
    for act in (
        lambda: dataset.add_set("t", images=images, prompt=half),
        lambda: dataset.add_set(half, images=images),
        lambda: dataset.judge("s", Judgement.parse(WINNER_0, 2), half),
        lambda: dataset.find(half),
        lambda: dataset.sets(annotator=half),
    ):
        with pytest.raises(DatasetError, match=r"ud800' has half a character"):
            act()
    assert files_of(dataset, "images") == before and dataset.statistics()["judgements"] == 0
