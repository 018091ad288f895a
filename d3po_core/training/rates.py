"""How often something is seen in the pictures of two sides, of the same prompts and seeds in pairs."""

from dataclasses import dataclass

import numpy as np

from .implicit import wilson


@dataclass(frozen=True)
class PairedRates:
    """In how many pairs something is seen: on both sides, on the first or the second alone, on neither."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> "PairedRates":
        """Of whether it is seen in each pair's pictures, [pairs] bool of each side."""
        cells = (first & second, first & ~second, ~first & second, ~first & ~second)
        return cls(*(int(cell.sum()) for cell in cells))

    @property
    def pairs(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def counts(self) -> tuple[int, int]:
        """How many of the first and of the second side's pictures show it."""
        return self.both + self.only_first, self.both + self.only_second

    @property
    def shares(self) -> tuple[float, float]:
        first, second = self.counts
        return first / self.pairs, second / self.pairs

    @property
    def intervals(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(low, high) of each side's share, 95 % (Wilson)."""
        first, second = self.shares
        return wilson(first, self.pairs), wilson(second, self.pairs)

    @property
    def correlation(self) -> float:
        """Phi of the two sides, made smaller if positive as for continuity (Newcombe 1998); 0 where a side
        shows it in all pictures or in none."""
        (first, second), n = self.counts, self.pairs
        spread = (first * (n - first) * second * (n - second)) ** 0.5
        product = self.both * self.neither - self.only_first * self.only_second
        return (max(product - n / 2, 0.0) if product > 0 else product) / spread if spread else 0.0

    @property
    def difference(self) -> tuple[float, float, float]:
        """Second share less the first, and its 95 % interval for pairs: (difference, low, high).

        Newcombe, Statistics in Medicine 17 (1998) 2635, method 10: the shares' own Wilson intervals, joined
        by their correlation. Its coverage holds with few pairs and with rates near 0, where the usual
        interval by the standard error is far too narrow.
        """
        (p, q), ((p_low, p_high), (q_low, q_high)) = self.shares, self.intervals
        below, above = (q - q_low, p_high - p), (q_high - q, p - p_low)
        low, high = (
            max(a**2 + b**2 - 2 * self.correlation * a * b, 0.0) ** 0.5 for a, b in (below, above)
        )  # fmt: skip
        return q - p, q - p - low, q - p + high
