"""Datasets of several machines as one."""

import shutil
from datetime import timedelta

import pytest
import torch

from d3po_core.candidates.judgement import Judgement
from d3po_core.dataset.index import DatasetError
from d3po_core.dataset.merging import merged
from d3po_core.dataset.store import Dataset
from tests.core.datasets import NOON, TREE, WINNER_0, WINNER_1, equal, judge
from tools.merge import WRONG
from tools.merge import main as merge


@pytest.fixture
def part(tmp_path):
    opened = []

    def make(name):
        opened.append(Dataset(tmp_path / name))
        return opened[-1]

    yield make
    for dataset in opened:
        dataset.close()


def history(dataset, set_id):
    return [
        (entry.annotator, entry.judgement, entry.time, entry.tool) for entry in dataset.judgements(set_id)
    ]


def test_a_merged_dataset_holds_what_its_parts_hold_and_leaves_them(tmp_path, part, toy):
    a, b = part("a"), part("b")
    trajectory = toy.record(toy.Denoiser(toy.net()), seed=7)
    images = torch.rand(2, 4, 4, 3)
    a.add_set("set 7", trajectory=trajectory, conditioning=TREE, prompt="a bear", created=NOON)
    a.add_set("of a", images=images)
    b.add_set("of b", candidates=2, conditioning=TREE)
    b.add_set("set 7", images=torch.rand(trajectory.count, 4, 4, 3), candidates=trajectory.count)
    judge(a, "of a", WINNER_0, "me", time=NOON)
    judge(b, "of b", WINNER_1, "you", time=NOON)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert merged([a.folder, b.folder], tmp_path / "both") == (3, 2)
    assert all(path.read_bytes() == content for path, content in before.items())
    with Dataset(tmp_path / "both", create=False) as both:
        assert {row.id for row in both.sets()} == {"set 7", "of a", "of b"}
        assert torch.equal(both.trajectory("set 7").states[:], trajectory.states)
        assert both.find("set 7").prompt == "a bear" and both.find("set 7").has_images
        assert equal(both.conditioning("set 7"), TREE) and equal(both.conditioning("of b"), TREE)
        assert torch.equal(both.images("of a"), a.images("of a"))
        assert both.pairs("of a") == [(0, 1)] and both.pairs("of b") == [(1, 0)]
    assert not [*tmp_path.glob(".*")]


def test_what_several_have_is_there_once_and_the_newest_answer_counts(tmp_path, part):
    a = part("a")
    a.add_set("s", candidates=2)
    judge(a, "s", WINNER_0, "me", time=NOON)
    shutil.copytree(a.folder, tmp_path / "b")
    b = part("b")
    judge(a, "s", WINNER_1, "me", time=NOON + timedelta(hours=2), tool="late")
    judge(b, "s", None, "me", time=NOON + timedelta(hours=1))
    judge(b, "s", WINNER_0, "me", time=NOON - timedelta(days=1))  # its clock was set back
    merged([a.folder, b.folder], tmp_path / "both")
    with Dataset(tmp_path / "both") as both:
        first, second = (Judgement.parse(said, 2) for said in (WINNER_0, WINNER_1))
        assert [entry[1] for entry in history(both, "s")] == [first, None, first, second]
        assert both.pairs("s") == [(1, 0)]
        merged([both.folder, b.folder, a.folder], tmp_path / "again")
        with Dataset(tmp_path / "again") as again:
            assert again.statistics()["judgements"] == both.statistics()["judgements"] == 1
            assert sorted(map(repr, history(again, "s"))) == sorted(map(repr, history(both, "s")))
            assert again.pairs("s") == [(1, 0)]


def test_a_file_that_is_missing_is_missing_there_too(tmp_path, part):
    a = part("a")
    a.add_set("whole", images=torch.rand(2, 4, 4, 3))
    a.add_set("torn", images=torch.rand(2, 4, 4, 3))
    a.image_files("torn")[0].unlink()
    merged([a.folder], tmp_path / "both")
    with Dataset(tmp_path / "both") as both:
        assert both.images("whole") is not None
        with pytest.raises(DatasetError, match="missing or damaged"):
            both.images("torn")


def test_nothing_is_made_of_parts_that_do_not_fit_or_in_a_place_that_is_taken(tmp_path, part):
    a, b = part("a"), part("b")
    a.add_set("s", candidates=2)
    b.add_set("s", candidates=3)
    judge(b, "s", WINNER_0, "me")
    with pytest.raises(DatasetError, match="'s' has 3 candidates .* 2 in another part"):
        merged([a.folder, b.folder], tmp_path / "both")
    with pytest.raises(DatasetError, match="there already"):
        merged([a.folder], b.folder)
    with pytest.raises(DatasetError, match="does not exist"):
        merged([a.folder, tmp_path / "none"], tmp_path / "both")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_the_command_tells_what_it_made_or_why_not(tmp_path, part, capsys):
    a, b = part("a"), part("b")
    a.add_set("of a", candidates=2)
    b.add_set("of b", candidates=2)
    judge(b, "of b", WINNER_1, "you")
    arguments = [str(a.folder), str(b.folder), "--into", str(tmp_path / "both")]
    assert merge(arguments) == 0 and "both: 2 sets, 1 judgements" in capsys.readouterr().out
    assert merge(arguments) == WRONG and "there already" in capsys.readouterr().err
    assert merge([str(tmp_path / "none"), "--into", str(tmp_path / "c")]) == WRONG
    assert not (tmp_path / "c").exists()
