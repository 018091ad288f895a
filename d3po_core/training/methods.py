"""The methods of preference tuning by name: which loss an update makes of a term, and what that needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from . import losses

if TYPE_CHECKING:
    from ..candidates.preferences import Preferences
    from .terms import Term, Values

PAIRS, LABELS, REWARDS, LIKED, TASTE = "pairs", "labels", "rewards", "liked candidates", "taste"
GUIDED = 2  # candidates of a set: what is learned of a taste holds for any of them
RECORDED, NOISED = "recorded steps", "noised images"
RECORDED_NOISE = "noised images, recorded noise"


@dataclass(frozen=True)
class Method:
    """How an update learns.

    loss       loss(term, values) -> scalar; values (terms.Values) hold weighted log-ratios
    of         PAIRS, LABELS (liked or not), REWARDS, or LIKED: what must have been said of candidates; or
               TASTE: that they come with one
    terms      RECORDED or NOISED where it learns from nothing else, "" where it learns from either
    reference  False: training needs no pass of the reference
    sampler    True: values hold how far the policy is from the one that sampled
    direction  True: values hold the log-ratio's gradient with respect to x0
    clamps     True: the loss clamps ratios to the settings' clip
    beta       False: the loss has no beta, of the settings' beta and dpo_beta
    """

    loss: Callable[["Term", "Values"], Tensor]
    of: str = PAIRS
    terms: str = ""
    reference: bool = True
    sampler: bool = False
    direction: bool = False
    clamps: bool = False
    beta: bool = True

    def taking_part(self, preferences: "Preferences") -> list[int]:
        """Indices of the candidates that take part, sorted; none where there is nothing to learn."""
        if self.of == PAIRS:
            return sorted({candidate for pair in preferences.pairs for candidate in pair})
        if self.of == TASTE:
            return list(range(min(GUIDED, preferences.candidates.count))) if preferences.taste else []
        if self.of == REWARDS:
            rewards = preferences.rewards
            return sorted(rewards) if len(set(rewards.values())) > 1 else []
        labels = preferences.labels
        return sorted(candidate for candidate, liked in labels.items() if liked or self.of == LABELS)

    @property
    def wanted(self) -> str:
        """What to do where no set has anything to learn from."""
        return {
            PAIRS: "no candidate is strictly preferred to another. Pick at least one winner, or record "
            "candidates that differ more",
            LABELS: "no candidate is liked or disliked. Give thumbs, or pick at least one winner",
            REWARDS: "all candidates of a set are rated alike. Pick at least one winner, or record "
            "candidates that differ more",
            TASTE: "there is no taste to go by. Put D3PO Taste Preference between your picks and the train "
            "step; if it stands there, more picks make the taste sure enough",
            LIKED: "no candidate is liked. Give a thumb up, or pick at least one winner",
        }[self.of]


def d3po(term: "Term", values: "Values") -> Tensor:
    return losses.d3po(*term.sides(values.log_ratio), term.beta, term.clip)


def diffusion_dpo(term: "Term", values: "Values") -> Tensor:
    return losses.dpo(*term.sides(values.log_ratio), term.beta)


def ipo(term: "Term", values: "Values") -> Tensor:
    return losses.ipo(*term.sides(values.log_ratio), term.beta)


def conservative_dpo(term: "Term", values: "Values") -> Tensor:
    return losses.dpo(*term.sides(values.log_ratio), term.beta, term.settings.label_smoothing)


def anchored_dpo(term: "Term", values: "Values") -> Tensor:
    winners, losers = term.sides(values.log_ratio)
    weight = term.settings.winner_weight * term.beta / 2  # beta / 2: DPO's own pull on the winner at margin 0
    return losses.dpo(winners, losers, term.beta) + weight * losses.sft(winners)


def sdpo(term: "Term", values: "Values") -> Tensor:
    winners, losers = term.sides(values.log_ratio)
    losers = losses.safeguard(losers, *term.sides(values.direction), term.settings.winner_share)
    return losses.dpo(winners, losers, term.beta)


def beta_dpo(term: "Term", values: "Values") -> Tensor:
    winners, losers = term.sides(values.log_ratio)
    beta = losses.adaptive_beta(
        losses.d3po_margin(winners, losers, term.beta),
        term.usual_margin,
        term.beta,
        term.settings.adaptation,
        term.settings.adaptation_bound,
    )
    return losses.dpo(winners, losers, beta)


def mapo(term: "Term", values: "Values") -> Tensor:
    errors = -2 * values.log_ratio  # without a reference the log-ratio is -error / 2
    return losses.mapo(*term.sides(errors), term.settings.mapo_beta, term.settings.mapo_snr)


def kto(term: "Term", values: "Values") -> Tensor:
    return losses.kto(values.log_ratio, term.judged.liked, values.kl, term.beta)


def ddpo(term: "Term", values: "Values") -> Tensor:
    return losses.ddpo(
        values.sampler_log_ratio, losses.advantages(term.judged.rewards), term.settings.ratio_clip
    )


def dpok(term: "Term", values: "Values") -> Tensor:
    return losses.dpok(
        values.sampler_log_ratio,
        losses.advantages(term.judged.rewards),
        values.kl,
        term.settings.kl_weight,
        term.settings.ratio_clip,
    )


def rwr(term: "Term", values: "Values") -> Tensor:
    return losses.rwr(values.log_ratio, term.judged.rewards, term.settings.reward_beta)


def nft(term: "Term", values: "Values") -> Tensor:
    return losses.nft(
        values.sampler_shift,
        values.sampler_error,
        losses.advantages(term.judged.rewards),
        values.kl,
        term.settings.nft_beta,
        term.settings.kl_weight,
        term.mask,
    )


def sft(term: "Term", values: "Values") -> Tensor:
    return losses.sft(values.log_ratio)


METHODS = {
    "D3PO": Method(d3po, clamps=True),
    "Diffusion-DPO": Method(diffusion_dpo, terms=NOISED),
    "IPO": Method(ipo),
    "DPO with label smoothing": Method(conservative_dpo),
    "DPO with winner anchor": Method(anchored_dpo),
    "Diffusion-SDPO": Method(sdpo, direction=True),
    "beta-DPO": Method(beta_dpo),
    "MaPO": Method(mapo, terms=NOISED, reference=False, beta=False),
    "Diffusion-KTO": Method(kto, of=LABELS),
    "DDPO": Method(ddpo, of=REWARDS, terms=RECORDED, sampler=True, beta=False),
    "DPOK": Method(dpok, of=REWARDS, terms=RECORDED, sampler=True, beta=False),
    "reward-weighted": Method(rwr, of=REWARDS, beta=False),
    "DiffusionNFT": Method(nft, of=REWARDS, terms=NOISED, sampler=True, beta=False),
    "supervised": Method(sft, of=LIKED, beta=False),
    "taste guidance": Method(sft, of=TASTE, terms=NOISED, beta=False),
}
