"""Processes that train together arrive at what one alone arrives at."""

import dataclasses
import io
import os

import pytest
import torch

from d3po_core.runs.progress import Progress
from d3po_core.training.loop import Settings, Trainer
from d3po_core.training.ranks import ALONE, Group, RankLost
from tests.core.children import finish, start
from tools.host import free_port

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a child that starts at once needs fork")
SETTINGS = Settings(
    learning_rate=3e-3, epochs=2, beta=20.0, dpo_beta=50.0, clip=0.0, sets_per_update=2, draws_per_set=3,
    weighting="standardised", max_grad_norm=1e9,
)  # fmt: skip


def together(count, work):
    """work(the rank's Group) in so many processes: what each returns, by rank; an exception as it is."""
    port = free_port()

    def of_rank(rank, tell):
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(count)
        }  # fmt: skip
        try:
            found = work(Group.begun())
        except Exception as error:
            found = error
        file = io.BytesIO()
        torch.save(found, file)
        for part in range(0, len(file.getvalue()), 2**15):
            tell(file.getvalue()[part : part + 2**15])

    children = [start(lambda tell, rank=rank: of_rank(rank, tell)) for rank in range(count)]
    told = [finish(*child)[1] for child in children]
    return [torch.load(io.BytesIO(each), weights_only=False) if each else None for each in told]


@pytest.fixture
def trained(recorded, drawn):
    """trained(settings, ranks, stop, folder): (weights, metrics of each update) of a training."""

    def run(settings, ranks, stop=None, folder=None, **adapter):
        kind = recorded if settings.method in ("D3PO", "DDPO") else drawn
        adapter, examples = kind(**adapter)
        trainer = Trainer(adapter, settings, ranks=ranks)
        progress = Progress(folder, "one and the same")
        made, *_ = progress.fit(
            trainer, examples, held_out=examples[:1], evaluate_every=1,
            stop=lambda made: stop and len(made) == stop,
        )  # fmt: skip
        return trainer.adapter.weights(), made

    return run


def assert_alike(ours, theirs):
    (weights, made), (others, expected) = ours, theirs
    torch.testing.assert_close(weights, others, rtol=1e-9, atol=1e-12)
    assert len(made) == len(expected) > 1
    for update, other in zip(made, expected):
        assert update == pytest.approx(other, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "method, sets_per_update, count",
    [("D3PO", 2, 2), ("D3PO", 1, 3), ("Diffusion-DPO", 2, 2), ("DDPO", 2, 2), ("beta-DPO", 1, 2)],
)
def test_several_learn_what_one_does(trained, method, sets_per_update, count):
    settings = dataclasses.replace(SETTINGS, method=method, sets_per_update=sets_per_update)
    alone = trained(settings, ALONE, dropout=0.25)
    ranks = together(count, lambda ranks: trained(settings, ranks, dropout=0.25))
    for found in ranks:
        assert_alike(found, alone)
        assert all(torch.equal(found[0][name], ranks[0][0][name]) for name in found[0])
        assert found[1] == ranks[0][1]


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_what_was_stopped_goes_on_with_another_number(trained, tmp_path, before, after):
    settings = dataclasses.replace(SETTINGS, sets_per_update=1, epochs=3)
    run = lambda count, **options: (
        together(count, lambda ranks: trained(settings, ranks, folder=tmp_path, **options))
        if count > 1
        else [trained(settings, ALONE, folder=tmp_path, **options)]
    )
    stopped = run(before, stop=4)
    assert [len(made) for _, made in stopped] == [4] * before
    for found in run(after):
        assert_alike(found, trained(settings, ALONE))
        assert found[1][:4] == stopped[0][1]


def test_one_that_dies_ends_the_others(trained):
    def work(ranks):
        def stop_here(*_):
            os._exit(9)

        if ranks.rank == 1:
            ranks.sum_gradients = stop_here
        return trained(SETTINGS, ranks)

    first, second = together(2, work)
    assert second is None and isinstance(first, RankLost) and "another process" in str(first)


def test_what_differs_between_them_is_refused(trained, tmp_path):
    def work(ranks):
        folder = tmp_path if ranks.first else None
        return trained(SETTINGS, ranks, folder=folder)

    trained(SETTINGS, ALONE, stop=1, folder=tmp_path)
    for error in together(2, work):
        assert isinstance(error, ValueError) and "in 1 it is another than in 0" in str(error)


def test_pieces_of_work_are_each_done_once_and_known_to_all():
    def work(ranks):
        done = []
        found = ranks.each(lambda item: done.append(item) or 10 * item, range(5))
        parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
        parameters[0].grad = torch.full((2,), 1.0 + ranks.rank)
        if ranks.rank:
            parameters[1].grad = torch.ones(2)
        ranks.sum_gradients(parameters)
        return done, found, [p.grad if p.grad is None else p.grad.tolist() for p in parameters]

    (one, found, sums), (two, *same) = together(2, work)
    assert one == [0, 2, 4] and two == [1, 3] and [found, sums] == same
    assert found == [0, 10, 20, 30, 40] and sums == [[3.0, 3.0], [1.0, 1.0], None]
    assert ALONE.each(lambda item: 10 * item, range(5)) == found
