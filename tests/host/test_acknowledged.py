"""An answer to a run that waits is acknowledged once it is on disk.

It is refused in words where it cannot be put there."""

import json
import shutil
import subprocess
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import pytest

from d3po_core.dataset.store import Dataset
from tests.host.graphs import (
    answer,
    answer_body,
    begin,
    choosing,
    found,
    keeping,
    live,
    messages,
    node,
    page,
    unique,
)

FIRST, SECOND = {"pairs": [[0, 1]]}, {"pairs": [[1, 0]]}
pytestmark = pytest.mark.usefixtures("nothing_is_left_waiting")


@pytest.fixture
def kept(base):
    """A new dataset's name; `kept.judged()` looks at what is on disk: {set: [its judgements]}."""

    class Name(str):
        folder = property(lambda self: base / "output" / "d3po" / "datasets" / self)

        def judged(self):
            with Dataset(self.folder, create=False) as store:
                return {
                    row.id: [entry.judgement.as_json for entry in store.judgements(row.id)]
                    for row in store.sets()
                }

    return Name(unique("kept"))


def waiting(dataset, sets=1, picks="", seed=None):
    """Candidates that go into a dataset, and a picker that waits for their picks and keeps them there."""
    graph = choosing(picks, candidates=2, sets=sets, seed=seed, when_missing="wait", dataset=["keep", 2])
    return graph | {"keep": keeping(dataset)}


def refusal(host, told, judgement):
    """(status, sentence) of an answer that is refused."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        answer(host, told, judgement)
    with refused.value as reply:
        return reply.code, json.loads(reply.read())["error"]


def test_an_answer_is_on_disk_when_it_is_acknowledged(host, kept):
    for count in range(1, 6):
        told = begin(host, waiting(kept, sets=2))
        assert answer(host, told, FIRST) == {"answered": True}
        judged = kept.judged()
        assert [judged[each["set"]] for each in told["sets"]] == [[FIRST]] * 2 and len(judged) == 2 * count
        host.wait(told["prompt_id"], 30)
    assert all(said == [FIRST] for said in kept.judged().values()), "the run itself adds nothing to it"


def test_an_acknowledged_answer_survives_that_the_host_is_killed(host, kept):
    told = begin(host, waiting(kept))
    assert answer(host, told, FIRST) == {"answered": True}
    host.kill()
    try:
        judged = kept.judged()
    finally:
        host.start()
    assert judged == {told["sets"][0]["set"]: [FIRST]}
    after = begin(host, waiting(kept))
    assert answer(host, after, SECOND) == {"answered": True}
    assert kept.judged() == judged | {after["sets"][0]["set"]: [SECOND]}
    host.wait(after["prompt_id"], 30)


def require_refused_until(host, kept, told, status, words, mend):
    code, sentence = refusal(host, told, FIRST)
    assert code == status and words in sentence and kept in sentence
    assert live(host) == {told["prompt_id"]: told}
    mend()
    answer(host, told, SECOND)
    looks = found(host.wait(told["prompt_id"], 30), "look")
    assert looks["pairs"] == [[1, 0]] and kept.judged() == {told["sets"][0]["set"]: [SECOND]}


def test_an_answer_that_cannot_be_kept_is_refused_in_words_and_the_run_waits_on(host, kept):
    told = begin(host, waiting(kept))
    journal = kept.folder / "index.sqlite-journal"
    journal.mkdir()  # in the place of the file that SQLite writes first
    require_refused_until(host, kept, told, 500, "could not be read or written", journal.rmdir)


@pytest.fixture
def small_disk(kept):
    """The dataset's folder is a disk of 400 kB."""
    kept.folder.mkdir(parents=True)
    if (
        not sys.platform.startswith("linux")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", kept.folder], capture_output=True
        ).returncode
    ):
        pytest.skip("a small disk cannot be made here")
    yield kept.folder / "filler"
    subprocess.run(["umount", "-l", kept.folder], check=True)
    shutil.rmtree(kept.folder)


def test_an_answer_on_a_full_disk_is_refused_as_such_and_taken_when_there_is_room(host, kept, small_disk):
    told = begin(host, waiting(kept))
    with pytest.raises(OSError), open(small_disk, "wb", buffering=0) as file:
        while True:
            file.write(bytes(512))
    require_refused_until(host, kept, told, 507, "the disk is full", small_disk.unlink)


def test_the_same_answer_many_times_at_once_is_one_judgement(host, kept):
    told = begin(host, waiting(kept))
    with ThreadPoolExecutor(8) as pool:

        def post(judgement):
            try:
                return answer(host, told, judgement)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        replies = list(pool.map(post, [FIRST] * 8))
    assert {"answered": True} in replies and all(reply in ({"answered": True}, 404) for reply in replies)
    host.wait(told["prompt_id"], 30)
    assert list(kept.judged().values()) == [[FIRST]]


def test_picks_of_a_dataset_that_lacks_the_set_are_not_waited_for(host, kept):
    host.run({name: node for name, node in waiting(kept, seed=71).items() if name in ("candidates", "keep")})
    graph = waiting(kept, seed=72)
    graph["keep"] = node(
        "D3POLoadSets", dataset=kept, annotator="me", sets="all", limit=9, since="", until=""
    )
    graph["judge"]["inputs"]["dataset"] = ["keep", 0]
    entry = host.wait(host.queue(graph, "a-page", page()), 30)
    (error,) = messages(entry, "execution_error")
    assert error["node_id"] == "judge" and "does not hold the set" in error["exception_message"]


def test_an_answer_with_no_dataset_is_taken_as_it_is(host):
    told = begin(host, choosing(when_missing="wait"))
    assert host.post("/d3po/answer", answer_body(told, FIRST)) == {"answered": True}
    assert found(host.wait(told["prompt_id"], 30), "look")["pairs"] == [[0, 1]]


# --- the wait itself ---


class Keeper:
    """Keeps picks, or fails."""

    def __init__(self, error=None):
        self.error, self.kept = error, []

    def __call__(self, picks):
        if self.error:
            raise self.error
        self.kept.append(picks)


def asked(routes, keep):
    return routes.Wait("prompt", "node", None, [{"set": "s", "candidates": 2, "images": []}], keep)


@pytest.mark.parametrize(
    "error, status", [(OSError("the share is gone"), 500), (ValueError("the index is damaged"), 500)]
)
def test_a_keeper_that_fails_refuses_the_answer_and_leaves_the_wait(routes, error, status):
    wait = asked(routes, Keeper(error))
    with pytest.raises(routes.Refused, match=str(error)) as refused:
        wait.take({"s": FIRST})
    assert refused.value.status == status and wait.picks is None
    wait.keep = Keeper()
    wait.take({"s": SECOND})
    assert wait.picks == {"s": SECOND} and wait.keep.kept == [{"s": SECOND}]


def test_a_wait_keeps_the_same_picks_once_and_refuses_others(routes):
    wait = asked(routes, Keeper())
    wait.take({"s": FIRST}), wait.take({"s": FIRST})
    with pytest.raises(routes.Refused, match="other picks came first") as refused:
        wait.take({"s": SECOND})
    assert refused.value.status == 409 and wait.keep.kept == [{"s": FIRST}]


def test_a_wait_that_is_over_keeps_nothing(routes):
    wait = asked(routes, Keeper())
    wait.end()
    with pytest.raises(routes.Refused, match="nothing waits there") as refused:
        wait.take({"s": FIRST})
    assert refused.value.status == 404 and wait.keep.kept == []
