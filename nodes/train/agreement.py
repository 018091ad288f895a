"""Whether candidates were recorded with what the train step's model has on it."""

from ...d3po_core.training.reference import kinds_of, weights_of
from .. import host
from .report import listed


def require_repeatable(session, candidates, guidance):
    """Raise ValueError where the session's model does not give the same twice, as
    patches.require_repeatable."""
    x, sigma = (tensor.to(session.device) for tensor in candidates.looked_at())
    host.require_repeatable(session.denoiser(candidates, guidance), x, sigma.expand(1))


def sampled_otherwise(judged, policy, trainer, guidance):
    """A warning of recordings that were made with something else on the model than the train step has, in a
    list.

    Where their x0 can be compared, it tells, as a trainer has seen it on its way; elsewhere the policies'
    names do.
    """
    apart = trainer.reference.apart | trainer.sampler.apart

    def unlike(candidates):
        compared = guidance is None and weights_of(candidates.policy) == weights_of(policy)
        return candidates.set_id in apart or not compared and kinds_of(candidates.policy) != kinds_of(policy)

    sets = {p.candidates.set_id: p.candidates for p in judged if p.candidates.recorded}
    names = [name for name, candidates in sets.items() if unlike(candidates)]
    if not names:
        return []
    were = "was" if len(names) == 1 else "were"
    return [
        f"{len(names)} of {len(sets)} sets {were} sampled with other patches on the model than the model "
        f"wired to the train step has (set {listed(names)}), so what is learned does not fit what is "
        "sampled. Put the same patch nodes, "
        "with the same settings, before both the sampler and the train step"
    ]
