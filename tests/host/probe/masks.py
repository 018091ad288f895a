"""Looks at candidates that differ inside a mask."""

import torch

from .common import Probe, sha


class ProbeMasked(Probe):
    """A recording inside a mask."""

    KIND = "D3PO_TRAJECTORY"

    def look(self, t):
        inside, last = (t.mask > 0).expand_as(t.finished), t.finished
        pairs = [(a, b) for a in range(t.count) for b in range(a)]
        return {
            "mask": [list(t.mask.shape), t.mask.mean().item()],
            "same_outside": all(torch.equal(one[~inside[0]], last[0][~inside[0]]) for one in last),
            "apart_inside": min((last[a] - last[b])[inside[0]].abs().max().item() for a, b in pairs),
            "sha": sha(t.states[:], t.denoised[:], t.sigmas, t.finished, t.mask, t.noise),
            "named": t.settings["mask"],
        }


class ProbePictures(Probe):
    """From which column on pictures are the same."""

    KIND = "IMAGE"

    def look(self, pictures):
        apart = (pictures != pictures[:1]).any(3).any(0).any(0)
        return {"width": len(apart), "same_from": int(apart.nonzero().max()) + 1 if apart.any() else 0}
