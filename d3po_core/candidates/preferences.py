"""What training learns from: a set of candidates and what was said of them."""

from dataclasses import dataclass
from statistics import mean

from .images import CleanCandidates
from .judgement import check_candidates
from .trajectory import Trajectory


@dataclass(frozen=True)
class Preferences:
    """One judged set: its candidates, recorded or without a trajectory, and what was said of them.

    pairs   the strict ones, (winner, loser), for losses of pairs
    scores  one for each candidate, higher is better, None where there is none; () where only comparisons are known
    liked   True (thumb up), False (thumb down) or None for each candidate; () where nobody said
    """

    trajectory: Trajectory | CleanCandidates
    pairs: tuple[tuple[int, int], ...]
    source: str = ""
    scores: tuple[float | None, ...] = ()
    liked: tuple[bool | None, ...] = ()

    def __post_init__(self):
        check_candidates(self.pairs, self.trajectory.candidates)
        for name in ("scores", "liked"):
            given = getattr(self, name)
            if given and len(given) != self.trajectory.candidates:
                raise ValueError(f"{len(given)} {name} for {self.trajectory.candidates} candidates")

    @property
    def rewards(self):
        """{candidate: reward} for losses of single candidates: its score, or without scores how many pairs it wins
        minus how many it loses."""
        if self.scores:
            return {i: float(score) for i, score in enumerate(self.scores) if score is not None}
        wins = dict.fromkeys(sorted({candidate for pair in self.pairs for candidate in pair}), 0.0)
        for winner, loser in self.pairs:
            wins[winner] += 1
            wins[loser] -= 1
        return wins

    @property
    def labels(self):
        """{candidate: whether it is liked}: its thumb, or without one whether its reward is above or below the set's
        mean; who has no thumb and equals the mean has no label."""
        rewards = self.rewards
        usual = mean(rewards.values()) if rewards else 0.0  # exact, so that equal rewards equal it
        thumbs = {i: liked for i, liked in enumerate(self.liked) if liked is not None}
        return {i: reward > usual for i, reward in rewards.items() if reward != usual} | thumbs
