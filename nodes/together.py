"""Several ComfyUIs that run one workflow together: what each of them does of it, and what they exchange.

`dev.py run` under torchrun or `accelerate launch` starts them. Sets are shared out where they begin, at D3PO
Prompts and Load Sets, and come together before they are trained on or kept.
"""

import os
from dataclasses import replace
from functools import cache

from ..d3po_core.runs.progress import trained_on
from ..d3po_core.training.ranks import ALONE, Group
from ..d3po_core.training.reference import weights_of
from . import host

TOGETHER = "D3PO_TOGETHER"  # set where this ComfyUI is one of several


@cache
def ranks():
    """The Ranks of this ComfyUI."""
    return Group.begun() if os.environ.get(TOGETHER) else ALONE


def share(*lists, what):
    """This ComfyUI's part of lists of one length. Raises ValueError where there is none for some."""
    among = ranks()
    if len(lists[0]) < among.count:
        raise ValueError(
            f"{what}: {len(lists[0])} cannot be shared out among {among.count} processes. Take more, or "
            "fewer processes"
        )
    return [among.part(own) for own in lists]


def number_of(graph, node_id, index):
    """The number of a node's set among all ComfyUIs' sets, of its number among those here."""
    among = ranks()
    if among.count > 1 and any(n["class_type"] == "D3POPrompts" for n in host.nodes_above(graph, node_id)):
        return index * among.count + among.rank
    return index


def everybodys(preferences, policy=""):
    """The Preferences of all ComfyUIs, in the same order in each: those that all have come first, as from a
    dataset, and then the others in turn, as D3PO Prompts has shared them out. policy names the weights that a
    run goes on from, as this ComfyUI does; each has its own name for them."""
    if ranks().count == 1:
        return preferences
    names = [_name(p) for p in preferences]
    common = set.intersection(*map(set, ranks().gathered(names)))
    own = [p for p, name in zip(preferences, names) if name not in common]
    others = everything([(p, policy) for p in own], [p.candidates for p in own])
    return [p for p, name in zip(preferences, names) if name in common] + [
        _as_named_here(p, theirs, policy) for p, theirs in others
    ]


def _as_named_here(preferences, theirs, ours):
    candidates = preferences.candidates
    if not theirs or not getattr(candidates, "policy", "").startswith(weights_of(theirs)):
        return preferences
    named = weights_of(ours) + candidates.policy.removeprefix(weights_of(theirs))
    return replace(preferences, candidates=replace(candidates, policy=named))


def everything(own, sets):
    """What all ComfyUIs have, in turn: the first of each, the second of each. `sets` are the candidates in
    it."""
    among = ranks()
    if among.count == 1:
        return own
    for candidates in sets:
        made = host.conditioning_of(candidates)
        if made and made.guider:
            raise ValueError(
                f"trajectory: it was sampled with {type(made.guider).__name__}, which cannot be sent to "
                "another process. Use Basic Guider or CFG Guider, or a single process"
            )
    parts = among.gathered(own)
    longest = max(map(len, parts))
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


def written_by_first(write):
    """write() in the first ComfyUI alone, whose result all get when it is done."""
    among = ranks()
    return among.gathered(write() if among.first else None)[0]


def alone(what):
    """Raise ValueError where several run the workflow."""
    if ranks().count > 1:
        raise ValueError(f"{what} works in a single process alone. Run this workflow without torchrun")


def _name(preferences):
    return repr(trained_on([preferences]))
