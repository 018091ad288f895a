"""The laboratory: simulated artists, and the least session in a process of its own, as it is a host by
itself."""

import json
import random
import subprocess
import sys

import pytest

from d3po_core.candidates.judgement import Judgement
from tests.conftest import EVERY
from tools.host import ROOT
from tools.lab.artists import MODES, Artist

SCORES = [0.3, -1.2, 2.5, 0.9, 0.1]
ORDER = [2, 3, 0, 4, 1]


def said(artist, scores=SCORES, seed=0):
    judgement, answers = artist.judge(scores, random.Random(seed))
    return Judgement.parse(judgement, len(scores)), answers


def test_who_ranks_without_errors_tells_the_order_in_few_answers():
    judgement, answers = said(Artist("ranking"))
    wanted = {(a, b) for i, a in enumerate(ORDER) for b in ORDER[i + 1 :]}
    assert set(judgement.pairs) == wanted and 4 <= answers < 10
    assert set(said(Artist("pairs"))[0].pairs) == wanted and said(Artist("pairs"))[1] == 10


def test_the_other_forms_say_less():
    judgement, answers = said(Artist("best"))
    assert set(judgement.pairs) == {(2, i) for i in (0, 1, 3, 4)} and answers == 1
    judgement, _ = said(Artist("stars"))
    assert judgement.scores[2] == 5 and judgement.scores[1] == 1
    judgement, answers = said(Artist("thumbs"))
    assert judgement.liked == (True, False, True, True, False) and answers == 5


@pytest.mark.parametrize("mode", MODES)
def test_wrong_answers_are_as_many_as_wanted(mode):
    def agreement(error):
        right = []
        for seed in range(300):
            rng = random.Random(seed)
            scores = [rng.random() for _ in range(5)]
            judgement, _ = said(Artist(mode, error), scores, seed)
            if mode == "thumbs":
                middle = sorted(scores)[2]
                right += [liked == (score >= middle) for score, liked in zip(scores, judgement.liked)]
            else:
                right += [scores[w] > scores[l] for w, l in judgement.pairs]
        return sum(right) / len(right)

    assert agreement(0.0) == 1.0
    assert 0.7 < agreement(0.2) < 0.95
    if mode in ("pairs", "thumbs"):
        assert agreement(0.2) == pytest.approx(0.8, abs=0.03)


def test_what_hardly_differs_is_a_tie():
    judgement, _ = said(Artist("pairs", blur=0.5), [0.0, 0.1, 5.0])
    assert set(judgement.pairs) == {(2, 0), (2, 1)}
    judgement, _ = said(Artist("ranking", blur=0.5), [0.0, 0.1, 5.0])
    assert set(judgement.pairs) == {(2, 0), (2, 1)}


CODE = """
import sys
from d3po_core.taste import movement
from tools import experiment_artists as artists, experiment_flow as flow, experiment_sessions as sessions
from tools import experiment_rewards as rewards
from tools.lab import hero, session
session.STEPS = movement.STEPS = 2
session.SEEN, session.HELD_OUT, flow.OBJECTIVES = 1, 2, ("bright",)
rewards.STEPS, rewards.SEEN, rewards.HELD_OUT, rewards.TRAINED = 3, 1, 2, 2
movement.PICTURES, hero.EPOCHS = 4, 3
out, flow_out, rewards_out, every = sys.argv[1:]
made = artists.laboratory
rooms = made(out, smoke=True)
artists.laboratory = sessions.laboratory = rewards.laboratory = lambda *_, **__: rooms
flow.laboratory = lambda out, smoke, of_flow: made(out, smoke, of_flow) if of_flow else rooms
arguments = ["--taste", "bright", "--seeds", "1", "--smoke", "--out", out]
artists.main([*arguments, "--labels", "1"])
if every:
    artists.main([*arguments, "--labels", "96", "--recipe", "HERO"])
    flow.main(["--seeds", "1", "--smoke", "--out", flow_out])
sessions.main(["--count", "1", "--first", "1", "--smoke", "--out", out])
along = ["--smoke", "--measured", "2", "--method", "DRaFT-K", "--objective", "bright", "--out", rewards_out]
rewards.main(along)
def again():
    raise AssertionError("it is there already")
artists.laboratory = flow.laboratory = rewards.laboratory = lambda *_, **__: again
rewards.main(along)
artists.main([*arguments, "--labels", "1"])
if every:
    flow.main(["--seeds", "1", "--smoke", "--out", flow_out])
"""


def test_the_least_sessions_leave_rows_and_are_not_run_again(tmp_path):
    """Of the recommended recipe, one that is drawn, and one along a gradient; with D3PO_EVERY also of its
    rival in two rounds, and a flow model's."""
    out, flow_out, rewards_out = (tmp_path / f"{name}.json" for name in ("artists", "flow", "rewards"))
    arguments = [sys.executable, "-c", CODE, out, flow_out, rewards_out, "every" if EVERY else ""]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,), *rounds, (drawn,) = json.loads(out.read_text()).values()
    assert row["taste"] == "bright" and row["labels"] == 6 and row["answers"] >= 4
    assert row.keys() >= {
        "error", "mode", "method", "seed", "gain", "objects kept", "grounds kept", "spread kept", "KL",
        "seconds",
    }  # fmt: skip
    assert row["method"] == "Diffusion-DPO" and 0 <= row["moved"] <= 0.01
    assert drawn["seed"] == 1 and "1 sessions: mean gain" in done.stdout
    assert done.stdout.count("recommended, bright: gain") == 2
    (row,) = json.loads(rewards_out.read_text()).values()
    assert row["updates"] == 2 and row.keys() >= {"gain", "objects kept", "moved", "told"}
    assert done.stdout.count("DRaFT-K, bright: gain") == 2
    assert rewards_out.with_name("rewards_DRaFT-K_bright_0.png").exists()
    if EVERY:
        (first, second), by_model = *rounds, [row for (row,) in json.loads(flow_out.read_text()).values()]
        assert first["method"] == second["method"] == "DDPO" and second["labels"] == 12
        assert second["updates"] == 8 and second["answers"] == 2 * (6 + 2)
        assert [row["recipe"] for row in by_model] == ["objective loop, epsilon", "objective loop, flow"]
        assert all(0 <= row["moved"] <= 0.01 and row["method"] == "Diffusion-DPO" for row in by_model)
        assert done.stdout.count("bright, flow less epsilon: gain") == 2
