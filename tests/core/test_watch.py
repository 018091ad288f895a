import math
import random
import re

import pytest

from d3po_core.training.monitor import best_update, stop_reason, warnings

SEEDS = range(200)


def names_of(history):
    """Which warnings there are, each by a word of its own."""
    words = {
        "winner log-ratio": "winner",
        "at the clamp": "clamp",
        "by heart": "hacking",
        "noisiest quarter": "noisy",
        "times and the gradient norm": "explosion",
    }
    found = []
    for sentence in warnings(history):
        (name,) = [name for word, name in words.items() if word in sentence]
        found.append(name)
        assert sentence.endswith(".") and 40 < len(sentence) < 400
    assert len(set(found)) == len(found)
    return found


def updates(count, **columns):
    """A history of `count` updates: each column a function of the update's number from 0, or a number."""
    return [
        {name.replace("_", " "): f(i) if callable(f) else f for name, f in columns.items()}
        for i in range(count)
    ]


def noise(count, seed, every=1):
    """What updates that learn nothing write, with evaluations of 20 held-out pairs."""
    draw = random.Random(seed)
    history = []
    for i in range(count):
        winner, loser = draw.gauss(0, 0.1), draw.gauss(0, 0.1)
        history.append(
            {
                "loss": math.log(2) + draw.gauss(0, 0.01),
                "winner log-ratio": winner,
                "loser log-ratio": loser,
                "margin": winner - loser,
                "implicit accuracy": draw.random(),
                "KL to reference": draw.expovariate(20),
                "clip fraction": draw.random(),
                "gradient norm": draw.lognormvariate(0, 1),
            }
        )
        history[-1] |= {f"margin, noise quarter {k}": draw.gauss(0, 0.1) for k in range(1, 5)}
        if i % every == 0:
            history[-1] |= evaluation(draw, 0.6, 0.0)
    return history


def evaluation(draw, accuracy, margin, pairs=20):
    right = sum(draw.random() < accuracy for _ in range(pairs))
    return {
        "held-out accuracy": right / pairs,
        "held-out margin": draw.gauss(margin, 0.05),
        "held-out pairs": pairs,
    }


def learning(count, seed, accuracy=lambda part: 0.7, margin=lambda part: 0.3, every=5, pairs=40):
    """Training that goes as it should, with evaluations whose truth depends on the part of the run so far."""
    draw = random.Random(seed)
    history = []
    for i in range(count):
        part = i / (count - 1)
        history.append(
            {
                "winner log-ratio": 0.3 * part + draw.gauss(0, 0.1),
                "margin": part + draw.gauss(0, 0.2),
                "implicit accuracy": min(1.0, 0.5 + 0.4 * part + draw.gauss(0, 0.1)),
                "KL to reference": 0.05 * part + abs(draw.gauss(0, 0.005)),
                "clip fraction": 0.3 * part,
                "gradient norm": draw.lognormvariate(0, 0.5),
            }
        )
        history[-1] |= {
            f"margin, noise quarter {k}": share * part + draw.gauss(0, 0.1)
            for k, share in enumerate((0.1, 0.2, 0.3, 0.4), 1)
        }
        if i % every == every - 1:
            history[-1] |= evaluation(draw, accuracy(part), margin(part), pairs)
    return history


# --- no false alarms ---


@pytest.mark.parametrize("count", [8, 12, 30, 100, 300])
def test_noise_alone_hardly_ever_warns(count):
    alarms = [name for seed in SEEDS for name in names_of(noise(count, seed, every=2))]
    assert len(alarms) <= 0.02 * len(SEEDS), alarms


def test_noise_alone_hardly_ever_warns_at_any_update_of_a_run():
    runs = [noise(48, seed, every=3) for seed in SEEDS]
    alarmed = sum(any(warnings(history[:n]) for n in range(8, 49, 2)) for history in runs)
    assert alarmed <= 0.05 * len(SEEDS)


@pytest.mark.parametrize("count", [30, 60, 200])
def test_training_that_goes_well_hardly_ever_warns(count):
    alarms = [name for seed in SEEDS for name in names_of(learning(count, seed))]
    assert len(alarms) <= 0.02 * len(SEEDS), alarms


@pytest.mark.parametrize(
    "history", [[], [{}], [{}] * 50, [{"loss": 0.7}] * 50, updates(7, clip_fraction=1.0)]
)
def test_with_too_little_to_see_there_is_no_warning(history):
    assert warnings(history) == []


def test_figures_that_stand_still_do_not_warn():
    still = {
        "margin": 0.0,
        "winner_log-ratio": 0.0,
        "clip_fraction": 0.0,
        "gradient_norm": 0.0,
        "KL_to_reference": 0.0,
        "held-out_accuracy": 0.5,
        "held-out_margin": 0.0,
        "held-out_pairs": 4,
    }
    still |= {f"margin,_noise_quarter_{k}": 0.0 for k in range(1, 5)}
    assert warnings(updates(40, **still)) == []


# --- the winner falls ---


def falling(count, seed, slope=-1.0, start=0.0):
    draw = random.Random(seed)
    return updates(
        count,
        **{
            "winner log-ratio": lambda i: start + slope * i / count + draw.gauss(0, 0.1),
            "margin": lambda i: i / count + draw.gauss(0, 0.1),
        },
    )


@pytest.mark.parametrize("count", [16, 40, 100])
def test_a_winner_that_falls_while_the_margin_rises_is_seen(count):
    assert sum(names_of(falling(count, seed)) == ["winner"] for seed in SEEDS) >= 0.95 * len(SEEDS)


def test_a_winner_that_rises_or_is_still_above_the_reference_is_not():
    assert not any(names_of(falling(40, seed, slope=1.0)) for seed in SEEDS)
    assert not any(names_of(falling(40, seed, start=5.0)) for seed in SEEDS)
    assert not any(
        names_of([entry | {"margin": -entry["margin"]} for entry in falling(40, seed)]) for seed in SEEDS
    )


def test_where_pictures_were_looked_at_it_says_nothing_more():
    history = [dict(entry) for entry in falling(40, 0)]
    assert warnings(history)
    history[-1]["pictures moved"] = 0.5
    assert not warnings(history)


def test_what_happened_more_than_a_hundred_updates_ago_is_past():
    def level(seed):
        return [
            {"winner log-ratio": entry["winner log-ratio"] - 1.0, "margin": entry["margin"] + 1.0}
            for entry in noise(100, seed)
        ]

    assert not any(warnings(falling(100, seed) + level(seed)) for seed in SEEDS)
    assert all(warnings(falling(100, seed) + level(seed)[:30]) for seed in SEEDS)


def test_the_warning_of_the_winner_says_what_to_do():
    (sentence,) = warnings(falling(40, 0))
    assert "lower learning_rate" in sentence and "higher beta" in sentence and "SDPO" in sentence


# --- the clamp ---


def test_a_clamp_that_saturates_lately_is_seen():
    assert names_of(updates(30, clip_fraction=lambda i: 0.9 if i > 20 else 0.1)) == ["clamp"]
    (sentence,) = warnings(updates(30, clip_fraction=0.9))
    assert (
        sentence.startswith("90% of the ratios are at the clamp (clip fraction)")
        and "larger clip, or 0" in sentence
    )


def test_a_clamp_that_did_or_that_nearly_does_is_not():
    assert names_of(updates(30, clip_fraction=lambda i: 0.1 if i > 20 else 0.9)) == []
    assert names_of(updates(30, clip_fraction=0.8)) == []


# --- reward hacking ---


def hump(top, end):
    return lambda part: top if part < 0.4 else top + (end - top) * (part - 0.4) / 0.6


def test_held_out_figures_that_fall_while_training_gains_are_seen():
    for options in ({"accuracy": hump(0.9, 0.3)}, {"margin": hump(0.3, -0.7)}):
        seen = sum("hacking" in names_of(learning(120, seed, **options)) for seed in SEEDS)
        assert seen >= 0.9 * len(SEEDS), options
    (sentence,) = warnings(learning(120, 0, margin=hump(0.3, -0.7)))
    update = int(re.search(r"around update (\d+)", sentence)[1])
    (later,) = warnings(learning(120, 0, margin=hump(0.3, -0.7)), before=200)
    assert later == sentence.replace(f"around update {update}", f"around update {200 + update}")
    assert (
        "held-out margin fell from 0.3" in sentence
        and "checkpoint 'best'" in sentence
        and "patience" in sentence
    )


def test_held_out_figures_that_fall_with_training_or_with_no_kl_are_not():
    for seed in SEEDS:
        history = learning(120, seed, margin=hump(0.3, -0.7))
        assert not names_of(
            [entry | {"margin": -entry["margin"], "implicit accuracy": 0.5} for entry in history]
        )
        assert not names_of([entry | {"KL to reference": 0.1} for entry in history])


def test_one_of_few_held_out_pairs_that_turns_is_no_fall():
    history = learning(60, 0)
    for i, entry in enumerate(history):
        entry.pop("held-out margin", None)
        if "held-out accuracy" in entry:
            entry |= {"held-out accuracy": 0.8 if i < 30 else 0.6, "held-out pairs": 5}
    assert names_of(history) == []
    for entry in history:
        if "held-out accuracy" in entry:
            entry["held-out pairs"] = 500
    assert names_of(history) == ["hacking"]


# --- the noisy steps ---


def by_quarter(shares, seed, count=40, scatter=0.2):
    draw = random.Random(seed)
    return updates(
        count,
        **{
            f"margin, noise quarter {k}": lambda i, share=share: share + draw.gauss(0, scatter)
            for k, share in enumerate(shares, 1)
        },
    )


def test_a_margin_of_the_noisiest_quarter_alone_is_seen():
    assert sum(
        names_of(by_quarter((0.0, 0.0, 0.05, 1.0), seed)) == ["noisy"] for seed in SEEDS
    ) >= 0.95 * len(SEEDS)
    assert "weighting to standardised" in warnings(by_quarter((0, 0, 0, 1), 0))[0]


@pytest.mark.parametrize(
    "shares", [(1, 0, 0, 0), (0.1, 0.1, 0.2, 0.6), (0.5, 0, 0, 1), (-0.5, 0, 0, 1), (0, 0, 0, -1)]
)
def test_a_margin_of_other_quarters_too_is_not(shares):
    assert sum(bool(names_of(by_quarter(shares, seed))) for seed in SEEDS) <= 0.02 * len(SEEDS)


def test_quarters_that_were_hardly_trained_on_say_nothing():
    history = by_quarter((0, 0, 0, 1), 0)
    for entry in history[7:]:
        entry.pop("margin, noise quarter 1")
    assert warnings(history) == []


# --- the explosion ---


def exploding(seed, margin=1.0, norm=1.0):
    draw = random.Random(seed)

    def grows(power):
        return lambda i: 100.0 ** (power * max(0.0, i - 26) / 13) * draw.lognormvariate(0, 0.3)

    return updates(40, margin=grows(margin), gradient_norm=grows(norm))


def test_a_margin_that_explodes_with_its_gradient_is_seen():
    assert sum(names_of(exploding(seed)) == ["explosion"] for seed in SEEDS) >= 0.99 * len(SEEDS)
    assert "lower learning_rate" in warnings(exploding(0))[0]


@pytest.mark.parametrize("margin, norm", [(1.0, 0.0), (0.0, 1.0), (0.4, 0.4)])
def test_a_margin_that_grows_alone_or_a_gradient_or_both_a_little_is_not(margin, norm):
    assert not any("explosion" in names_of(exploding(seed, margin, norm)) for seed in SEEDS)


# --- when to stop ---


def held_out(*figures, every=2):
    history = []
    for accuracy, margin in figures:
        history += [{"loss": 0.6}] * (every - 1) + [
            {"held-out accuracy": accuracy, "held-out margin": margin}
        ]
    return history


def test_nothing_stops_where_nothing_is_asked_for():
    assert stop_reason([]) == ""
    assert (
        stop_reason(updates(30, KL_to_reference=1e9) + held_out(*[(0.9 - 0.1 * i, 0) for i in range(9)]))
        == ""
    )


def test_kl_stops_by_its_mean_over_five_updates():
    spike = updates(20, KL_to_reference=lambda i: 1.0 if i == 10 else 0.1)
    assert all(stop_reason(spike[:n], stop_kl=0.3) == "" for n in range(21))
    grows = updates(20, KL_to_reference=lambda i: 0.1 * i)
    stopped = [n for n in range(21) if stop_reason(grows[:n], stop_kl=1.05)]
    assert stopped == list(range(14, 21))  # the mean of updates 10 to 14 is 1.1, of 9 to 13 it is 1.0
    assert (
        stop_reason(grows[:14], 1.05)
        == "stopped after update 14: KL to reference is 1.1, above stop_kl 1.05."
    )
    assert stop_reason(updates(4, KL_to_reference=9.0), stop_kl=1.0) == ""


def test_kl_goes_on_from_earlier_updates_and_counts_the_later_ones():
    before, made = updates(20, KL_to_reference=1.0), updates(1, KL_to_reference=1.2)
    assert stop_reason(made, stop_kl=0.9) == ""
    assert stop_reason(made, 0.9, before=before).startswith(
        "stopped after update 1: KL to reference is 1.04,"
    )


def test_an_evaluation_that_overflowed_is_no_best():
    history = held_out((math.nan, 0.1), (0.6, math.nan), (0.6, 0.1), (0.5, 0.1))
    assert best_update(history) == 6 and best_update(history[:4]) == 0
    assert "after update 6." in stop_reason(history, patience=1) and stop_reason(history, patience=2) == ""


def test_kl_names_the_best_update_where_it_is_known():
    history = held_out((0.6, 0.1), (0.8, 0.2), (0.7, 0.2)) + updates(5, KL_to_reference=2.0)
    assert stop_reason(history, stop_kl=1.0) == (
        "stopped after update 11: KL to reference is 2, above stop_kl 1. The "
        "best held-out accuracy was 0.8, after update 4."
    )


def test_patience_counts_evaluations_without_a_new_best():
    figures = [(0.5, 0), (0.7, 0), (0.6, 0), (0.7, 0), (0.65, 0)]
    for n in range(len(figures) + 1):
        assert bool(stop_reason(held_out(*figures[:n]), patience=3)) == (n == 5)
    assert stop_reason(held_out(*figures), patience=3) == (
        "stopped after update 10: held-out accuracy is 0.65, and the last 3 evaluations brought no new best "
        "(patience 3). The best held-out accuracy was 0.7, after update 4."
    )


def test_of_equal_accuracies_a_higher_margin_is_a_new_best():
    assert stop_reason(held_out((0.7, 0.1), (0.7, 0.2), (0.7, 0.3)), patience=1) == ""
    assert "after update 2." in stop_reason(held_out((0.7, 0.3), (0.7, 0.2)), patience=1)
    assert "after update 2." in stop_reason(held_out((0.7, 0.3), (0.7, 0.3)), patience=1)
    assert stop_reason([{"held-out accuracy": 0.7}], patience=1) == ""


def test_updates_without_an_evaluation_do_not_use_up_patience():
    assert stop_reason(held_out((0.7, 0), (0.6, 0)) + [{"loss": 0.6}] * 50, patience=2) == ""
