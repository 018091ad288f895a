"""Answers that were changed after a run was trained on them."""

from comfy_execution.graph_utils import is_link

from ..d3po_core.candidates.judgement import Judgement
from ..d3po_core.runs import store
from ..d3po_core.runs.checkpoints import steps_kept
from ..d3po_core.runs.progress import said
from .library import runs_root


def corrections(graph, node_id, sets):
    """What to say of the sets whose finished judgements are others than those that a run was trained on,
    whose D3PO Load Run is above the node: a sentence or two for each set.

    sets  what a picks value says of each set; how many candidates it has, only the run knows
    """
    return [
        sentence
        for run, checkpoint in runs_above(graph, node_id).items()
        if sets
        for sentence in _of_run(run, checkpoint, sets)
    ]


def _of_run(run, checkpoint, sets):
    try:
        folder = store.run_folder(runs_root(), run)
        record, kept = store.load_record(folder, checkpoint), steps_kept(folder)
    except ValueError:  # Load Run says what is wrong with it
        return []
    rounds = record["rounds"] if record else []
    last = {noted["set"]: (number, noted) for number, round_ in enumerate(rounds) for noted in round_["sets"]}
    return [
        _sentence(name, number, rounds, run, kept)
        for name, (number, noted) in last.items()
        if "candidates" in noted and _said(sets.get(name), noted["candidates"]) not in (None, noted["said"])
    ]


def _said(of_set, candidates):
    """As a round notes it; None while there is no finished judgement, and for one that cannot be read, which
    its own set's turn will tell."""
    try:
        judgement = Judgement.parse_finished(of_set, candidates)
    except ValueError:
        return None
    return judgement and said(judgement.pairs, judgement.scores, judgement.liked)


def _sentence(name, number, rounds, run, kept):
    start = rounds[number]["start"]
    step = max(checkpoint for checkpoint in kept if checkpoint <= start)
    which = "the state before it" if step == start else "the last state before it that is kept"
    left = " What was trained after that round is left behind." if rounds[number + 1 :] else ""
    return (
        f"Set {name} was trained on in round {number + 1} of the run {run!r} with other answers, and the "
        f"LoRA keeps to those until that round is trained again: set D3PO Load Run's checkpoint to {step}, "
        f"{which}, and press Run. Then set it back to {store.LATEST}.{left}"
    )


def runs_above(graph, node_id):
    """{run: checkpoint} of the Load Run nodes above a node, as far as what they are set to is written in the
    graph."""
    checkpoints, todo, seen = {}, [node_id], {node_id}
    while todo:
        node = graph.get_node(todo.pop())
        inputs = node["inputs"]
        if node["class_type"] == "D3POLoadRun":
            run, checkpoint = (_text(graph, inputs.get(name, store.LATEST)) for name in ("run", "checkpoint"))
            if run is not None and checkpoint is not None:
                checkpoints[run] = checkpoint
        above = {value[0] for value in inputs.values() if is_link(value)} - seen
        seen |= above
        todo += above
    return checkpoints


def _text(graph, value):
    """A text that is written here or in a primitive node; None for one that another node makes."""
    return graph.get_node(value[0])["inputs"].get("value") if is_link(value) else value
