"""The judge that is a person."""

import json

from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker

from ..d3po_core.preference import Preferences, pairs_from_judgement
from .judging import preferred_and_rejected, require_one_image_each
from .types import CATEGORY, PreferencesType, Trajectories

PICKS_VERSION = 1


def judgement_of(picks, set_id):
    """The judgement of one candidate set in a picks value, or None if there is none yet.

    picks is JSON text: {"version": 1, "sets": {set_id: {"pairs": ...} or {"ranking": ...} or {"scores": ...}}}.
    Raises ValueError if it is anything else.
    """
    try:
        value = json.loads(picks or "{}")
        if not isinstance(value, dict) or not isinstance(value.get("sets", {}), dict):
            raise ValueError("it is not an object with \"sets\"")
    except ValueError as error:
        raise ValueError(f"picks: this is not a picks value ({error}). It is JSON, "
                         '{"version": 1, "sets": {...}}; empty it to start again') from error
    if value.get("version", PICKS_VERSION) != PICKS_VERSION:
        raise ValueError(f"picks: they are of format version {value['version']}, which this version of the pack does "
                         "not know; update the pack")
    return value.get("sets", {}).get(set_id)


class D3POPairPreference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POPairPreference",
            display_name="D3PO Pair Preference (Picker)",
            category=CATEGORY,
            search_aliases=["picker", "image chooser", "human feedback", "rank images", "choose"],
            description="Your picks among the candidates. While a set has none, its candidates are shown and nothing "
                        "behind this node runs; with picks the run goes on. Picks belong to their set of candidates "
                        "and travel with the workflow.",
            inputs=[
                Trajectories.Input("trajectory", tooltip="The recorded candidates."),
                io.Image.Input("images", tooltip="The same candidates as images, from VAE Decode."),
                io.String.Input("picks", default="", multiline=True, socketless=True,
                                tooltip="The picks of every set judged so far, as JSON: {\"version\": 1, \"sets\": {set "
                                        "name: {\"pairs\": [[winner, loser], ...]} or {\"ranking\": [best, ..., worst]} "
                                        "or {\"scores\": [...]}}}. Candidates are numbered from 0."),
            ],
            outputs=[
                PreferencesType.Output(display_name="preferences", tooltip="Wire to the train step."),
                io.Image.Output(display_name="preferred", tooltip="The candidate preferred most often."),
                io.Image.Output(display_name="rejected", tooltip="The candidate rejected most often."),
                io.Int.Output(display_name="pairs", tooltip="How many strict preferences the picks imply."),
                io.String.Output(display_name="set_name", tooltip="The name of this set of candidates, under which its "
                                                                  "picks are kept. Comes also while picks are missing."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            has_intermediate_output=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory, images, picks):
        require_one_image_each(trajectory, images)
        judgement = judgement_of(picks, trajectory.set_id)
        shown = ui.PreviewImage(images, cls=cls).as_dict() | {
            "d3po": [{"set": trajectory.set_id, "candidates": trajectory.candidates, "judged": judgement is not None}]}
        if judgement is None:
            return io.NodeOutput(*[ExecutionBlocker(None)] * 4, trajectory.set_id, ui=shown)
        try:
            pairs = pairs_from_judgement(judgement, trajectory.candidates)
        except ValueError as error:
            raise ValueError(f"picks: set {trajectory.set_id}: {error}") from error
        preferences = Preferences(trajectory, tuple(pairs), source="picks")
        best, worst = preferred_and_rejected(preferences, images)
        return io.NodeOutput(preferences, best, worst, len(pairs), trajectory.set_id, ui=shown)
