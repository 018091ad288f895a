"""Watches a run's history while it trains: when to stop, and what goes wrong.

A history is a list of dicts, oldest first: the metrics of each update by name. Any metric may be missing in
any entry. An update after which held-out sets were evaluated has their figures as well. Updates are counted
from 1.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import TypeAlias

from . import metrics

History: TypeAlias = Sequence[Mapping[str, float]]

SMOOTH = 5  # updates whose mean is the present KL to the reference
ENOUGH = 8  # updates that a warning needs at least
WINDOW = 100  # updates that a warning looks back at most
SURE = 2.0  # standard errors that a score falls by where pictures really are worse
SIGMAS = 4.0  # standard errors that chance rarely reaches: for eight numbers in 0.4 % of all cases
QUARTERS = [metrics.of_quarter(metrics.MARGIN, k) for k in metrics.QUARTERS]


def best_update(history: History) -> int:
    """The update with the best held-out accuracy; 0 where nothing was measured.

    Of equal accuracies it is the first with the highest held-out margin.
    """
    return max(_evaluated(history), key=lambda evaluation: evaluation[1:], default=(0, 0.0, 0.0))[0]


def stop_reason(history: History, stop_kl: float = 0.0, patience: int = 0, before: History = ()) -> str:
    """Why training should end after the last update, as a sentence; "" where it should go on.

    stop_kl   training ends where the mean KL to the reference of the last five updates is above this; 0:
              never
    before    earlier history, whose KL is that of the same LoRA to the same reference
    patience  training ends after so many evaluations in a row without a new best held-out accuracy; 0: never.
              Of equal accuracies the one with the higher held-out margin is better
    """
    evaluated, best = _evaluated(history), best_update(history)
    best_words = (
        f" The best held-out accuracy was {history[best - 1][metrics.HELD_OUT_ACCURACY]:.3g}, "
        f"after update {best}."
        if best
        else ""
    )
    if kl := kl_above(stop_kl, [*before, *history]):
        return (
            f"stopped after update {len(history)}: KL to reference is {kl:.3g}, above stop_kl {stop_kl:g}."
            + best_words
        )
    since = sum(update > best for update, *_ in evaluated)
    if patience > 0 and since >= patience:
        return (
            f"stopped after update {len(history)}: held-out accuracy is {evaluated[-1][1]:.3g}, and the last "
            f"{since} evaluations brought no new best (patience {patience}).{best_words}"
        )
    return ""


def kl_above(stop_kl: float, history: History) -> float | None:
    """The mean KL to the reference of the last five updates where it is above stop_kl, else None.

    With a stop_kl of 0 it is always None.
    """
    kl = _values(history, metrics.KL)[-SMOOTH:]
    return fmean(kl) if stop_kl > 0 and len(kl) == SMOOTH and fmean(kl) > stop_kl else None


def hacked(history: History, leash: float) -> str:
    """Why training by a scorer should end after the last update, as stop_reason; "" where pictures were not
    looked at after it, or are sound.

    leash  how far pictures may move; 0: as far as they like
    """
    last = history[-1]
    moved = last.get(metrics.MOVED, 0.0)
    if leash and moved > leash:
        return (
            f"stopped after update {len(history)}: pictures have moved by {moved:.2g}, beyond the leash of "
            f"{leash:g}"
        )
    gain, second = last.get(metrics.GAIN, 0.0), last.get(metrics.FIDELITY, 0.0)
    if gain > 0 and second < -SURE * last.get(metrics.FIDELITY_ERROR, 0.0):
        return (
            f"stopped after update {len(history)}: the objective rises and fidelity falls (score "
            f"{gain:+.2g}, second_scorer {second:+.2g} standard deviations): the LoRA finds a way around "
            "what the scorer is for (reward hacking)"
        )
    return ""


def warnings(history: History, before: int = 0) -> list[str]:
    """What goes wrong and what to do about it, a sentence for each; [] where the figures show nothing.

    The history begins `before` updates into the run. Each warning looks at the last 100 updates, and needs
    eight at least. A figure rises or falls where the means of the two halves differ by four standard errors
    (Welch's t). Noise alone does so in less than 1 % of all cases.
    """
    recent = history[-WINDOW:]
    sentences = [
        _both_less_likely(recent),
        _clamp_saturates(recent),
        _over_optimised(history, before),
        _only_noisy_steps(recent),
        _margin_explodes(recent),
    ]
    return [sentence for sentence in sentences if sentence]


# --- one warning each: its sentence, or None ---


def _both_less_likely(history: History) -> str | None:
    """The winner's log-ratio, below 0, falls while the margin rises: likelihood displacement.

    See arXiv 2410.08847. Where pictures were sampled and held on a leash it says nothing more.
    """
    winner = _values(history, metrics.WINNER)
    if history and metrics.MOVED in history[-1]:
        return None
    if (
        _trend(_values(history, metrics.MARGIN)) > SIGMAS
        and _trend(winner) < -SIGMAS
        and fmean(_halves(winner)[1]) < 0
    ):
        return (
            f"The preferred images become less likely too (winner log-ratio {fmean(_halves(winner)[1]):.3g} "
            "and falling) while the margin rises: the pictures may get worse. Use a method that holds on "
            "to the winner (a winner anchor, or SDPO's safeguard), a lower learning_rate or a higher beta."
        )
    return None


def _clamp_saturates(history: History) -> str | None:
    """The mean clip fraction of the last eight updates is above 0.8."""
    clipped = _values(history, metrics.CLIP_FRACTION)[-ENOUGH:]
    if len(clipped) == ENOUGH and fmean(clipped) > 0.8:
        return (
            f"{fmean(clipped):.0%} of the ratios are at the clamp (clip fraction), where they teach "
            "nothing: training has all but ended. Set a larger clip, or 0 (with DDPO and DPOK a larger "
            "ratio_clip), or a lower learning_rate."
        )
    return None


def _over_optimised(history: History, before: int) -> str | None:
    """Since the best evaluation KL and the margin or accuracy in training rise, and a held-out figure fell.

    Evaluations are smoothed over three. A fall is four standard errors or more, measured by how much
    evaluations scatter from one to the next. For the accuracy it is also two or more of sqrt(a (1 - a) / n),
    the standard error that n held-out pairs leave.
    """
    for name in (metrics.HELD_OUT_ACCURACY, metrics.HELD_OUT_MARGIN):
        series = _series(history, name)
        if len(series) < 6:
            continue
        values = [value for _, value in series]
        smooth = [fmean(values[i : i + 3]) for i in range(len(values) - 2)]
        best = max(range(len(smooth)), key=smooth.__getitem__)
        fall = smooth[best] - smooth[-1]
        scatter = math.sqrt(fmean((b - a) ** 2 for a, b in zip(values, values[1:])) / 2)
        limit = SIGMAS * scatter * math.sqrt(2 / 3)
        if name == metrics.HELD_OUT_ACCURACY:
            a, pairs = (smooth[best] + smooth[-1]) / 2, _values(history, metrics.HELD_OUT_PAIRS)
            limit = max(limit, 2 * math.sqrt(a * (1 - a) / pairs[-1]) if pairs else 0.0)
        update = series[best + 1][0]
        since = history[update - 1 :]
        learns = max(_trend(_values(since, gained)) for gained in (metrics.MARGIN, metrics.ACCURACY)) > SIGMAS
        if fall > limit and learns and _trend(_values(since, metrics.KL)) > SIGMAS:
            return (
                f"{name} fell from {smooth[best]:.3g} (around update {before + update}) to {smooth[-1]:.3g} "
                "while training went on to gain: the LoRA learns the judged images by heart or finds a way "
                "around the taste (reward hacking). Go back to the checkpoint 'best', and stop earlier "
                "with stop_kl or patience."
            )
    return None


def _only_noisy_steps(history: History) -> str | None:
    """The noisiest quarter's mean margin is above 0 and more than 0.8 of all four's summed sizes."""
    quarters = [_values(history, name) for name in QUARTERS]
    if min(map(len, quarters)) < ENOUGH:
        return None
    means = [fmean(values) for values in quarters]
    share = abs(means[3]) / (sum(map(abs, means)) or 1.0)
    if share > 0.8 and means[3] > SIGMAS * _error(quarters[3]):
        return (
            f"{share:.0%} of the margin comes from the noisiest quarter of the steps: composition is tuned "
            "and detail is not, which ends in over-optimised pictures. With recorded steps set weighting "
            "to standardised; with noised images lower learning_rate, or stop earlier."
        )
    return None


def _margin_explodes(history: History) -> str | None:
    """Of margin and gradient norm, the median over the last ninth of the updates is ten times that of all."""
    growth = [_growth(_values(history, name)) for name in (metrics.MARGIN, metrics.GRADIENT_NORM)]
    if min(growth) > 10:
        return (
            f"The margin grew {growth[0]:.0f} times and the gradient norm {growth[1]:.0f} times within the "
            "last updates: training is about to break. Go back to an earlier checkpoint and lower "
            "learning_rate, or use IPO or a higher beta."
        )
    return None


# --- the figures ---


def _series(history: History, name: str) -> list[tuple[int, float]]:
    """(update, value) of every update that has the metric."""
    return [(update, entry[name]) for update, entry in enumerate(history, 1) if name in entry]


def _values(history: History, name: str) -> list[float]:
    return [value for _, value in _series(history, name)]


def _evaluated(history: History) -> list[tuple[int, float, float]]:
    """(update, held-out accuracy, held-out margin) of every evaluation, without those that overflowed."""
    return [
        (update, accuracy, margin)
        for update, accuracy in _series(history, metrics.HELD_OUT_ACCURACY)
        if math.isfinite(accuracy)
        and math.isfinite(margin := history[update - 1].get(metrics.HELD_OUT_MARGIN, 0.0))
    ]


def _halves(values: list[float]) -> tuple[list[float], list[float]]:
    return values[: len(values) // 2], values[len(values) // 2 :]


def _error(values: list[float]) -> float:
    """The standard error of a mean."""
    return stdev(values) / math.sqrt(len(values))


def _trend(values: list[float]) -> float:
    """Welch's t of the later half against the earlier, in standard errors; 0 for too few values."""
    if len(values) < ENOUGH:
        return 0.0
    early, late = _halves(values)
    error = math.hypot(_error(early), _error(late))
    return (fmean(late) - fmean(early)) / error if error else 0.0


def _growth(values: list[float]) -> float:
    """The median over the last ninth, three values at least, by the median of all; 0 for too few values."""
    if len(values) < ENOUGH:
        return 0.0
    sizes = [abs(value) for value in values]
    usual = median(sizes)
    return median(sizes[-max(3, len(sizes) // 9) :]) / usual if usual else 0.0
