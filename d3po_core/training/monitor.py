"""Looks at a run's history while it trains: when to stop, and what goes wrong in the ways known for
preference tuning.

A history is a list of dicts, oldest first: the metrics of each update by name. Any metric may be missing in
any entry; an update after which held-out sets were evaluated has their figures as well. Updates are counted
from 1.
"""

import math
from statistics import fmean, median, stdev

from . import metrics

SMOOTH = 5  # updates whose mean is the present KL to the reference
ENOUGH = 8  # updates that a warning takes at least
WINDOW = 100  # updates that it looks back at most
SIGMAS = 4.0  # standard errors that chance does not make: of eight numbers in 0.4 % of all cases
QUARTERS = [metrics.of_quarter(metrics.MARGIN, k) for k in metrics.QUARTERS]


def best_update(history):
    """The update with the best held-out accuracy, of equals the first with the highest held-out margin; 0
    where nothing was measured."""
    return max(_evaluated(history), key=lambda e: e[1:], default=(0,))[0]


def stop_reason(history, stop_kl=0.0, patience=0, before=()):
    """Why training should end after the last update, as a sentence; "" where it should go on.

    stop_kl   the mean KL to the reference of the last five updates may not be above this; 0: it may be
              anything
    before    earlier history, whose KL is that of the same LoRA to the same reference
    patience  so many evaluations in a row may not all be without a new best held-out accuracy; 0: they may.
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


def kl_above(stop_kl, history):
    """The mean KL to the reference of the last five updates where it is above stop_kl, else None; with
    stop_kl 0 always."""
    kl = _values(history, metrics.KL)[-SMOOTH:]
    return fmean(kl) if stop_kl > 0 and len(kl) == SMOOTH and fmean(kl) > stop_kl else None


def warnings(history, before=0):
    """What goes wrong, a sentence each with what to do about it; [] where nothing does as far as the figures
    can tell. The history begins `before` updates into the run.

    Each looks at the last 100 updates, and takes eight at least. A figure rises or falls where the means of
    the two halves differ by four standard errors (Welch's t), which noise alone does in less than 1 % of all
    cases.
    """
    recent = history[-WINDOW:]
    found = [
        _both_less_likely(recent),
        _clamp_saturates(recent),
        _over_optimised(history, before),
        _only_noisy_steps(recent),
        _margin_explodes(recent),
    ]
    return [sentence for sentence in found if sentence]


# --- one warning each: its sentence, or None ---


def _both_less_likely(history):
    """The winner's log-ratio, below 0, falls while the margin rises (likelihood displacement, arXiv
    2410.08847)."""
    winner = _values(history, metrics.WINNER)
    if (
        _trend(_values(history, metrics.MARGIN)) > SIGMAS
        and _trend(winner) < -SIGMAS
        and fmean(_halves(winner)[1]) < 0
    ):
        return (
            "The preferred images become less likely too (winner log-ratio "
            f"{fmean(_halves(winner)[1]):.3g} and falling) while the margin rises: the pictures may get worse. Use "
            "a method that holds on to the winner (a winner anchor, or SDPO's safeguard), a lower learning_rate or "
            "a higher beta."
        )


def _clamp_saturates(history):
    """The mean clip fraction of the last eight updates is above 0.8."""
    clipped = _values(history, metrics.CLIP_FRACTION)[-ENOUGH:]
    if len(clipped) == ENOUGH and fmean(clipped) > 0.8:
        return (
            f"{fmean(clipped):.0%} of the ratios are at the clamp (clip fraction), where they teach nothing: "
            "training has all but ended. Set a larger clip, or 0 (with DDPO and DPOK a larger ratio_clip), or a lower "
            "learning_rate."
        )


def _over_optimised(history, before):
    """Since the best evaluation KL and the margin or accuracy in training rise, and a held-out figure fell.

    Evaluations are smoothed over three. A fall is one by four standard errors, by how much they scatter from
    one to the next; of the accuracy also by two of those that n held-out pairs leave, sqrt(a (1 - a) / n).
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
                f"{name} fell from {smooth[best]:.3g} (around update {before + update}) to {smooth[-1]:.3g} while training "
                "went on to gain: the LoRA learns the judged images by heart or finds a way around the taste "
                "(reward hacking). Go back to the checkpoint 'best', and stop earlier with stop_kl or patience."
            )


def _only_noisy_steps(history):
    """The noisiest quarter's mean margin is above 0 and more than 0.8 of the sum of all four quarters'
    sizes."""
    quarters = [_values(history, name) for name in QUARTERS]
    if min(map(len, quarters)) < ENOUGH:
        return None
    means = [fmean(values) for values in quarters]
    share = abs(means[3]) / (sum(map(abs, means)) or 1.0)
    if share > 0.8 and means[3] > SIGMAS * _error(quarters[3]):
        return (
            f"{share:.0%} of the margin comes from the noisiest quarter of the steps: composition is tuned and "
            "detail is not, which ends in over-optimised pictures. With recorded steps set weighting to "
            "standardised; with noised images lower learning_rate, or stop earlier."
        )


def _margin_explodes(history):
    """Margin and gradient norm both have a median over the last ninth of the updates that is ten times that
    of all."""
    growth = [_growth(_values(history, name)) for name in (metrics.MARGIN, metrics.GRADIENT_NORM)]
    if min(growth) > 10:
        return (
            f"The margin grew {growth[0]:.0f} times and the gradient norm {growth[1]:.0f} times within the last "
            "updates: training is about to break. Go back to an earlier checkpoint and lower learning_rate, or use "
            "IPO or a higher beta."
        )


# --- the figures ---


def _series(history, name):
    """(update, value) of every update that has the metric."""
    return [(update, entry[name]) for update, entry in enumerate(history, 1) if name in entry]


def _values(history, name):
    return [value for _, value in _series(history, name)]


def _evaluated(history):
    """(update, held-out accuracy, held-out margin) of every evaluation. One that overflowed tells nothing."""
    return [
        (update, accuracy, margin)
        for update, accuracy in _series(history, metrics.HELD_OUT_ACCURACY)
        if math.isfinite(accuracy)
        and math.isfinite(margin := history[update - 1].get(metrics.HELD_OUT_MARGIN, 0.0))
    ]


def _halves(values):
    return values[: len(values) // 2], values[len(values) // 2 :]


def _error(values):
    """The standard error of a mean."""
    return stdev(values) / math.sqrt(len(values))


def _trend(values):
    """Welch's t of the later half against the earlier: how many standard errors it is higher; 0 for too few
    values."""
    if len(values) < ENOUGH:
        return 0.0
    early, late = _halves(values)
    error = math.hypot(_error(early), _error(late))
    return (fmean(late) - fmean(early)) / error if error else 0.0


def _growth(values):
    """How many times its median a figure is over the last ninth, three values at least; 0 for too few."""
    if len(values) < ENOUGH:
        return 0.0
    sizes = [abs(value) for value in values]
    usual = median(sizes)
    return median(sizes[-max(3, len(sizes) // 9) :]) / usual if usual else 0.0
