"""A dataset looked through: what there is, and pages of sets."""

from datetime import timedelta

import pytest
import torch

from d3po_core.dataset.store import Dataset
from tests.core.datasets import NOON, TIE, WINNER_0, WINNER_1, change, judge

PROMPTS = ["a red fox", "50% off", "50 percent off", "A_B", "axb", "back\\slash", None]


@pytest.fixture
def dataset(tmp_path):
    """Seven sets of two candidates, one a minute, and an eighth without images; ann and ben judged some."""
    with Dataset(tmp_path / "taste") as dataset:
        for i, prompt in enumerate([*PROMPTS, "no images"]):
            images = {"candidates": 2} if prompt == "no images" else {"images": torch.rand(2, 4, 4, 3)}
            dataset.add_set(f"set {i}", prompt=prompt, created=NOON + timedelta(minutes=i), **images)
        judge(dataset, "set 0", WINNER_0, "ann")
        judge(dataset, "set 0", WINNER_1, "ann")
        judge(dataset, "set 0", TIE, "ben")
        judge(dataset, "set 1", WINNER_0, "ann")
        judge(dataset, "set 1", None, "ann")
        judge(dataset, "set 2", {"open": True, "log": {}}, "ann")
        yield dataset


def numbers(dataset, *given, **named):
    return [int(each.row.id[-1]) for each in dataset.browse(*given, **named)]


def test_each_sees_what_they_have_not_judged(dataset):
    assert dataset.overview("ann") == {
        "sets": 8,
        "unjudged": 6,
        "annotators": {"ann": 1, "ben": 1},
        "newest": (NOON + timedelta(minutes=7)).isoformat(timespec="microseconds"),
    }
    assert dataset.overview("cem")["unjudged"] == 7
    assert numbers(dataset, "ann", "unjudged", order="oldest") == [1, 2, 3, 4, 5, 6]
    assert numbers(dataset, "ben", "judged") == [0]
    assert [dataset.count("ann", which) for which in ("all", "judged", "unjudged")] == [8, 1, 6]
    assert numbers(dataset, "ann") == [7, 6, 5, 4, 3, 2, 1, 0]
    with Dataset(dataset.folder.parent / "empty") as empty:
        assert empty.overview("ann") == {"sets": 0, "unjudged": 0, "annotators": {}, "newest": None}
        assert empty.browse("ann") == [] and empty.count("ann") == 0


def test_pages_hold_every_set_once(dataset):
    pages = [numbers(dataset, "ann", limit=3, offset=3 * page) for page in range(3)]
    assert pages == [[7, 6, 5], [4, 3, 2], [1, 0]]


@pytest.mark.parametrize(
    "search, found", [("FOX", [0]), ("50%", [1]), ("a_b", [3]), ("k\\s", [5]), ("off", [1, 2]), ("%", [1])]
)
def test_what_is_searched_for_is_meant_literally(dataset, search, found):
    assert numbers(dataset, "ann", search=search, order="oldest") == found
    assert dataset.count("ann", search=search) == len(found)


def test_a_set_comes_with_its_images_and_what_counts_of_what_was_said(dataset):
    *_, shown = dataset.browse("ann")
    assert [dataset.folder / file for file in shown.images] == dataset.image_files("set 0")
    assert [(entry.annotator, entry.judgement.as_json) for entry in shown.said] == [
        ("ann", WINNER_1),
        ("ben", TIE),
    ]
    assert dataset.browse("ann")[0].images == ()


def test_nonsense_in_the_index_spoils_no_page(dataset):
    change(
        dataset.folder,
        "UPDATE judgements SET judgement = 'x' WHERE annotator = 'ben'",
        "UPDATE images SET file = '../../secret.png' WHERE set_id = 'set 1' AND candidate = 0",
        "DELETE FROM images WHERE set_id = 'set 2' AND candidate = 0",
        "UPDATE sets SET candidates = 'many' WHERE id = 'set 3'",
    )
    shown = {each.row.id: each for each in dataset.browse("ann")}
    assert [entry.annotator for entry in shown["set 0"].said] == ["ann"]
    assert shown["set 1"].images == shown["set 2"].images == ()
    assert "set 3" not in shown and len(shown["set 4"].images) == 2
