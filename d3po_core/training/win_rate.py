"""How often one side's pictures are preferred to the other's, in a blind comparison."""

from dataclasses import dataclass
from typing import Literal

from .implicit import NORMAL_95, wilson

Verdict = Literal["better", "worse", "same", "open"]

# web/win_rate.js has these too, to say after each answer whether there are enough.

# The normal quantile of a 99.5 % interval. Whoever looks after each of 100 answers and stops as soon as 50 %
# lies outside the interval sees a difference where there is none in 36 % of sessions with a 95 % interval,
# and in less than 5 % with this one.
NORMAL_EARLY = 2.807
LEAST = 6  # answers to tell a difference by: five all agree by chance in 6 % of sessions
NARROW = 0.1  # half of the width at which an interval around 50 % means that there is no difference to see


@dataclass(frozen=True)
class WinRate:
    """What a session's answers say of its second side.

    wins, losses, ties  how many answers prefer the second side, the first one, and neither
    """

    wins: int = 0
    losses: int = 0
    ties: int = 0

    @property
    def answers(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def share(self) -> float:
        """The win rate, ties counting half; 0.5 without answers."""
        return (self.wins + self.ties / 2) / self.answers if self.answers else 0.5

    def interval(self, normal: float = NORMAL_95) -> tuple[float, float]:
        """Wilson's interval (low, high) of the win rate, at 95 % or another normal quantile.

        Ties make answers vary less than wins and losses alone would, so with ties it is a little too wide.
        """
        return wilson(self.share, self.answers, normal) if self.answers else (0.0, 1.0)

    def verdict(self, complete: bool) -> Verdict:
        """Whether the second side is better or worse, or no difference is to be seen, or that is open.

        Better or worse is when 50 % lies outside the 95 % interval. Before a session is complete it takes
        the 99.5 % interval, as that is looked at again and again. No difference is a 95 % interval around
        50 % that is narrower than 10 points to either side.
        """
        low, high = self.interval(NORMAL_95 if complete else NORMAL_EARLY)
        if self.answers >= LEAST and not low <= 0.5 <= high:
            return "better" if low > 0.5 else "worse"
        low, high = self.interval()
        return "same" if low <= 0.5 <= high and high - low < 2 * NARROW else "open"
