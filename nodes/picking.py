"""The judge that is a person."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import comfy.model_management
import folder_paths
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from server import PromptServer
from torch.utils.weak import WeakTensorKeyDictionary

from ..d3po_core.candidates.judgement import Judgement
from ..d3po_core.candidates.preferences import Preferences
from . import routes
from .corrections import corrections
from .judging import preferred_and_rejected, require_one_image_each
from .prompts import prompts_of
from .stored import DatasetType, record_judgements, require_sets
from .types import CATEGORY, PICKS, PreferencesType, Trajectories

PICKS_VERSION = 1
TOOL = f"picker, picks version {PICKS_VERSION}"
STOP, WAIT = "stop here", "wait"
LOOK_EVERY = 0.05  # seconds between two looks at the interrupt and the answer while waiting

# How often a node with these picks has waited to its end. The cache must not answer for the person next time.
_waited = Counter()
_previews = WeakTensorKeyDictionary()  # by a batch itself, not by its values


def sets_in(picks):
    """{set: what was said of it, as Judgement.parse reads it} of a picks value.

    picks is JSON text: {"version": 1, "sets": {set_id: {"pairs": ...} or {"ranking": ...} or {"scores": ...}
    or {"good": ..., "bad": ...}}}. Raises ValueError if it is anything else.
    """
    try:
        value = json.loads(picks or "{}")
        if not isinstance(value, dict) or not isinstance(value.get("sets", {}), dict):
            raise ValueError('it is not an object with "sets"')
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"picks: this is not a picks value ({error}). It is JSON, "
            '{"version": 1, "sets": {...}}; empty it to start again'
        ) from error
    if value.get("version", PICKS_VERSION) != PICKS_VERSION:
        raise ValueError(
            f"picks: they are of format version {value['version']!r:.40}, which this version of the pack "
            "does not know; update the pack"
        )
    return value.get("sets", {})


def finished(said, trajectory):
    """The Judgement of a set that a picks value has; None while there is none that is finished."""
    try:
        return Judgement.parse_finished(said.get(trajectory.set_id), trajectory.count)
    except ValueError as error:
        raise ValueError(f"picks: set {trajectory.set_id}: {error}") from error


def are_there(images):
    """Whether previews, as the page is told of them, are still files."""
    folder = folder_paths.get_temp_directory()
    return all(Path(folder, image["subfolder"], image["filename"]).exists() for image in images)


def outputs():
    return [
        PreferencesType.Output(
            display_name="preferences", is_output_list=True, tooltip="Wire to the train step."
        ),
        io.Image.Output(
            display_name="preferred",
            is_output_list=True,
            tooltip="The candidate preferred most often.",
        ),
        io.Image.Output(
            display_name="rejected", is_output_list=True, tooltip="The candidate rejected most often."
        ),
        io.Int.Output(
            display_name="pairs",
            is_output_list=True,
            tooltip="How many strict preferences the picks imply.",
        ),
        io.String.Output(
            display_name="set_name",
            is_output_list=True,
            tooltip="The name of this set of candidates, under which its picks are kept. Comes "
            "also while picks are missing.",
        ),
    ]


class D3POPairPreference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POPairPreference",
            display_name="D3PO Pair Preference (Picker)",
            category=CATEGORY,
            search_aliases=["picker", "image chooser", "human feedback", "rank images", "choose"],
            description=(
                "Your picks among the candidates. While a set has none, its candidates are shown and "
                "nothing behind this node runs; with picks the run goes on. Picks belong to their set of "
                "candidates and travel with the workflow."
            ),
            is_input_list=True,
            inputs=[
                Trajectories.Input("trajectory", tooltip="The recorded candidates."),
                io.Image.Input("images", tooltip="The same candidates as images, from VAE Decode."),
                io.String.Input(
                    "picks",
                    default="",
                    multiline=True,
                    socketless=True,
                    extra_dict={"widgetType": "D3PO_PICKER"},
                    tooltip='The picks of every set judged so far, as JSON: {"version": 1, "sets": {set '
                    'name: {"pairs": [[winner, loser], ...]} or {"ranking": [best, ..., worst]} '
                    'or {"scores": [...]} or {"good": [...], "bad": [...]}}}. Candidates are '
                    "numbered from 0.",
                ),
                io.Combo.Input(
                    "when_missing",
                    options=[STOP, WAIT],
                    default=STOP,
                    optional=True,
                    tooltip="While picks are missing: stop here shows the candidates and ends the run, and "
                    "the next run goes on from them; wait holds the run inside this node until you "
                    "have picked, or cancel.",
                ),
                io.Float.Input(
                    "time_limit",
                    default=0.0,
                    min=0.0,
                    max=1e6,
                    step=1.0,
                    round=0.01,
                    optional=True,
                    tooltip="Minutes to wait before the run stops here after all. 0 waits without a limit.",
                ),
                DatasetType.Input(
                    "dataset",
                    optional=True,
                    tooltip="Where the picks are kept as well, under the annotator's name: from D3PO Save to "
                    "Dataset or D3PO Load Sets.",
                ),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id, io.Hidden.dynprompt],
            has_intermediate_output=True,
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, picks, **_):
        return _waited[get_executing_context().node_id, hash(picks[0])]

    @classmethod
    async def execute(
        cls, trajectory, images, picks, when_missing=(STOP,), time_limit=(0.0,), dataset=(None,)
    ):
        if len(trajectory) != len(images):
            raise ValueError(
                f"images: there are {len(images)} batches of images for {len(trajectory)} sets of "
                "candidates; wire the sampler's latent through VAE Decode to this input"
            )
        for recorded, batch in zip(trajectory, images):
            require_one_image_each(recorded, batch)
        picked = sets_in(picks[0])
        judgements = {recorded.set_id: finished(picked, recorded) for recorded in trajectory}
        shown = [
            {
                "set": recorded.set_id,
                "candidates": recorded.count,
                "images": cls.previews(batch),
                "text": text or "",
            }
            for recorded, batch, text in zip(
                trajectory, images, cls.texts(trajectory, dataset[0]), strict=True
            )
        ]
        missing = [set_ for set_ in shown if judgements[set_["set"]] is None]
        if missing and when_missing[0] == WAIT:
            judgements |= await cls.wait_for(missing, 60 * time_limit[0], dataset[0])
            _waited[get_executing_context().node_id, hash(picks[0])] += 1
        outputs = [
            cls.result(recorded, batch, judgements[recorded.set_id])
            for recorded, batch in zip(trajectory, images)
        ]
        if dataset[0]:
            record_judgements(
                dataset[0],
                {name: judgement for name, judgement in judgements.items() if judgement is not None},
                TOOL,
            )
        workflow = routes.workflow_id(cls.hidden.extra_pnginfo)
        message = {
            "images": [image for set_ in shown for image in set_["images"]],
            "d3po": [
                set_ | {"judged": judgements[set_["set"]] is not None, "workflow": workflow} for set_ in shown
            ],
        }
        if warned := corrections(cls.hidden.dynprompt, cls.hidden.unique_id, picked):
            message |= {"text": warned, "warnings": warned}
        return io.NodeOutput(*map(list, zip(*outputs)), ui=message)

    @classmethod
    def texts(cls, trajectory, dataset):
        """The sets' prompts: what the dataset has kept, else what is written above; None where unknown."""
        above = prompts_of(cls, (), len(trajectory))
        if not dataset:
            return above
        with dataset.open() as store:
            kept = [store.find(recorded.set_id) for recorded in trajectory]
        return [(row and row.prompt) or text for row, text in zip(kept, above, strict=True)]

    @classmethod
    def previews(cls, batch):
        """A batch's images as files for the page. Those that were made before serve again: ComfyUI's cache
        hands the same batch over each time, and writing PNGs takes as long as anything here."""
        made = _previews.get(batch)
        if made is None or not are_there(made):
            made = _previews[batch] = ui.PreviewImage(batch, cls=cls).as_dict()["images"]
        return made

    @classmethod
    async def wait_for(cls, missing, limit, dataset):
        """A person's judgements of the missing sets; none if `limit` seconds pass first (0: no limit).

        If there is a dataset, they are kept there before they are acknowledged.
        """
        context, server, extra = get_executing_context(), PromptServer.instance, cls.hidden.extra_pnginfo
        if server.client_id is None or not (routes.workflow_of(extra) or server.client_id in server.sockets):
            raise ValueError(
                f'when_missing: it is set to "{WAIT}", but no browser shows this run, so nobody could '
                f"pick. Run it from ComfyUI's page, give the picks of set {missing[0]['set']}, or choose "
                f'"{STOP}"'
            )
        if dataset:
            with dataset.open() as store:  # now, not when somebody has done the work
                require_sets(store, dataset.name, [set_["set"] for set_ in missing])
        wait = routes.Wait(
            context.prompt_id,
            context.node_id,
            routes.workflow_id(extra),
            missing,
            lambda picks: dataset and record_judgements(dataset, picks, TOOL),
        )
        until = time.monotonic() + limit if limit else float("inf")
        with routes.waiting(wait):
            while wait.picks is None and time.monotonic() < until:
                comfy.model_management.throw_exception_if_processing_interrupted()
                await asyncio.sleep(LOOK_EVERY)
        return wait.picks or {}

    @classmethod
    def result(cls, trajectory, images, judgement):
        """One set's outputs: blocked, all but its name, while it has no judgement."""
        name = trajectory.set_id
        if judgement is None:
            return *[ExecutionBlocker(None)] * 4, name
        preferences = Preferences(
            trajectory, judgement.pairs, source=PICKS, scores=judgement.scores, liked=judgement.liked
        )
        return preferences, *preferred_and_rejected(preferences, images), len(judgement.pairs), name
