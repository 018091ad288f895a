"""Preference datasets: sets recorded now, judged later, by several people, trained on together."""

import json
from itertools import islice

from comfy_api.latest import io
from server import PromptServer

from . import host
from .prompts import prompts_of
from .stored import (
    ANNOTATORS,
    HELD_OUT,
    JOINING,
    LIMIT,
    NAME,
    NOT_YET,
    SHARED,
    SINCE,
    SPLIT,
    SPLITS,
    UNTIL,
    DatasetHandle,
    DatasetType,
    ImageSet,
    alike,
    counted,
    day,
    each_whole,
    loaded,
    nothing,
    open_dataset,
    preferences_in,
    told,
    version,
)
from .together import everything, ranks, written_by_first
from .types import CATEGORY, PreferencesType, Trajectories


class D3POSaveToDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POSaveToDataset",
            display_name="D3PO Save to Dataset",
            category=CATEGORY,
            search_aliases=["record dataset", "store candidates", "preference dataset"],
            description=(
                "Keeps sets of candidates on disk, with all that training needs, so that they can be "
                "judged later, by several people. Goes between VAE Decode and a preference node, or at the "
                "end."
            ),
            is_input_list=True,
            inputs=[
                Trajectories.Input("trajectory", tooltip="The recorded candidates."),
                io.Image.Input("images", tooltip="The same candidates as images, from VAE Decode."),
                io.String.Input("dataset", **NAME),
                io.String.Input(
                    "annotator",
                    default="me",
                    tooltip="Who judges: the name under which picks are kept in "
                    "the dataset, if a preference node is wired to it.",
                ),
                io.String.Input(
                    "prompt",
                    optional=True,
                    force_input=True,
                    tooltip="The prompts, from D3PO Prompts. Without it the text of a CLIP Text Encode above "
                    "the sampler is kept.",
                ),
            ],
            outputs=[
                Trajectories.Output(display_name="trajectory", is_output_list=True, tooltip="As it came in."),
                io.Image.Output(display_name="images", is_output_list=True, tooltip="As they came in."),
                DatasetType.Output(
                    display_name="dataset",
                    tooltip="Wire to a preference node, so that its judgements are kept in the dataset too.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory, images, dataset, annotator, prompt=()):
        if len(trajectory) != len(images):
            raise ValueError(
                f"images: there are {len(images)} batches of images for {len(trajectory)} sets of candidates"
            )
        model_name = host.texts_above(cls.hidden.dynprompt, cls.hidden.unique_id).get("model", "")
        prompts = prompts_of(cls, prompt, len(trajectory))
        handle = DatasetHandle(dataset[0], annotator[0])
        sets = everything(list(zip(trajectory, images, prompts)), trajectory)

        def write():
            with handle.open(create=True) as store:
                added = sum(keep(store, *each, model_name) for each in sets)
            PromptServer.instance.send_sync("d3po.kept", {"dataset": dataset[0], "sets": added})
            return f"{dataset[0]}: {added} new of {len(sets)} sets"

        text = written_by_first(write)
        return io.NodeOutput(trajectory, images, handle, ui={"text": [text]})


def keep(store, trajectory, images, prompt, model_name):
    """Add one set to a dataset: whether it is new."""
    if isinstance(trajectory, ImageSet):
        return store.add_set(trajectory.set_id, images=images.cpu(), prompt=prompt)
    known = store.find(trajectory.set_id)
    if known and known.has_trajectory and not alike(store.trajectory(trajectory.set_id), trajectory):
        raise ValueError(
            f"dataset: it holds other candidates under the name of this set, {trajectory.set_id}. Something "
            "above the sampler was changed that ComfyUI's graph does not tell, such as a file that was "
            "written over; change the seed, or save to another dataset"
        )
    made = host.conditioning_of(trajectory)
    if made and made.guider:
        raise ValueError(
            f"trajectory: it was sampled with {type(made.guider).__name__}, which a dataset cannot keep. Use "
            "Basic Guider or CFG Guider, or train on it at once"
        )
    conditioning = made and {name: getattr(made, name) for name in SHARED}
    try:
        return store.add_set(
            trajectory.set_id,
            trajectory=trajectory,
            images=images.cpu(),
            conditioning=conditioning,
            prompt=prompt,
            model_name=model_name,
        )
    except TypeError as error:
        raise ValueError(
            f"trajectory: its conditioning cannot be kept in a dataset ({error}); plain prompts, areas and "
            "masks can, ControlNets and other attached models cannot"
        ) from error


class D3POLoadSets(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POLoadSets",
            display_name="D3PO Load Sets from Dataset",
            category=CATEGORY,
            search_aliases=["judge later", "unjudged", "annotate", "review"],
            description=(
                "Takes sets of candidates out of a dataset to judge them: wire to the picker, or to an "
                "objective. Judgements go back into the dataset by the wire of that name."
            ),
            inputs=[
                io.String.Input("dataset", **NAME),
                io.String.Input(
                    "annotator",
                    default="me",
                    tooltip="Who judges. The name under which judgements are kept; "
                    "everyone judges for themselves.",
                ),
                io.Combo.Input(
                    "sets",
                    options=["not judged by me", "not judged by anyone", "all"],
                    default="not judged by me",
                    tooltip="Which sets to load.",
                ),
                io.Int.Input(
                    "limit",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="The most sets to load, oldest first. Their images are all in memory at once.",
                ),
                io.String.Input("since", **SINCE),
                io.String.Input("until", **UNTIL),
                io.Model.Input(
                    "model", optional=True, tooltip="Only sets that were recorded on this base model."
                ),
            ],
            outputs=[
                DatasetType.Output(
                    display_name="dataset", tooltip="Wire to the preference node's input of that name."
                ),
                Trajectories.Output(display_name="trajectory", is_output_list=True, tooltip="The sets."),
                io.Image.Output(
                    display_name="images", is_output_list=True, tooltip="Their candidates as images."
                ),
                io.String.Output(
                    display_name="prompt", is_output_list=True, tooltip="Their prompts, where known."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, dataset, **_):
        return version(dataset)

    @classmethod
    def execute(cls, dataset, annotator, sets, limit, since, until, model=None):
        handle = DatasetHandle(dataset, annotator)
        if not version(dataset):
            return nothing(cls, NOT_YET.format(dataset))
        with handle.open() as store:
            rows = [
                row
                for row in store.sets(
                    judged=None if sets == "all" else False,
                    annotator=annotator if sets == "not judged by me" else None,
                    since=day(since, "since"),
                    until=day(until, "until"),
                    model=model and host.fingerprint(model),
                )
                if row.has_images
            ]
            left_out = []
            whole = each_whole(
                rows, lambda row: (loaded(dataset, store, row), store.images(row.id)), left_out
            )
            to_judge = ranks().part([*islice(whole, limit)])
            text = told(f"{dataset}: {len(to_judge)} sets to judge", left_out)
            if not to_judge:
                return nothing(cls, text, dataset=handle)
            return io.NodeOutput(
                handle,
                [trajectory for _, (trajectory, _) in to_judge],
                [images for _, (_, images) in to_judge],
                [row.prompt or "" for row, _ in to_judge],
                ui={"text": [text]},
            )


class D3POLoadPreferences(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POLoadPreferences",
            display_name="D3PO Load Preferences from Dataset",
            category=CATEGORY,
            search_aliases=["train on dataset", "load preferences", "held out"],
            description=(
                "Judged sets of a dataset, for the train step. Tensors stay on disk until they are trained "
                "on, so a dataset may be larger than memory."
            ),
            inputs=[
                io.String.Input("dataset", **NAME),
                io.Combo.Input("split", **SPLIT),
                io.Float.Input("held_out", **HELD_OUT),
                io.String.Input("annotators", **ANNOTATORS),
                io.Combo.Input("joining", **JOINING),
                io.Int.Input("limit", default=0, **LIMIT),
                io.String.Input("since", **SINCE),
                io.String.Input("until", **UNTIL),
                io.Model.Input(
                    "model", optional=True, tooltip="Only sets that were recorded on this base model."
                ),
            ],
            outputs=[
                PreferencesType.Output(
                    display_name="preferences", is_output_list=True, tooltip="Wire to the train step."
                ),
                io.Int.Output(display_name="pairs", tooltip="How many strict preferences there are."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, dataset, **_):
        return version(dataset)

    @classmethod
    def execute(cls, dataset, split, held_out, annotators, joining, limit, since, until, model=None):
        if not version(dataset):
            return nothing(cls, NOT_YET.format(dataset))
        with open_dataset(dataset) as store:
            rows = store.sets(
                judged=True,
                since=day(since, "since"),
                until=day(until, "until"),
                model=model and host.fingerprint(model),
                split=SPLITS[split],
                held_out=held_out,
            )
            recorded = [row for row in rows if row.has_trajectory]
            left_out = []
            preferences = preferences_in(dataset, store, recorded, annotators, joining, limit, left_out)
        if rows and not recorded:
            raise ValueError(
                f"dataset: the {len(rows)} judged sets of {dataset!r} are images alone, without recorded "
                "trajectories; wire the dataset to D3PO Encode Image Pairs"
            )
        if not preferences and split == "held out":  # nothing to measure on is no reason not to train
            return io.NodeOutput(
                [], 0, ui={"text": [told(f"{dataset}: no judged set is held out yet", left_out)]}
            )
        if not preferences:
            return nothing(cls, told(f"{dataset}: no judged set fits these filters yet", left_out))
        return io.NodeOutput(
            preferences,
            sum(len(p.pairs) for p in preferences),
            ui={"text": [told(counted(dataset, preferences), left_out)]},
        )


class D3PODatasetStatistics(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3PODatasetStatistics",
            display_name="D3PO Dataset Statistics",
            category=CATEGORY,
            search_aliases=["dataset info", "agreement", "annotators"],
            description=(
                "What a dataset holds: sets, judgements, who judged how much and how far they agree, space "
                "on disk."
            ),
            inputs=[io.String.Input("dataset", **NAME), io.Float.Input("held_out", **HELD_OUT)],
            outputs=[
                io.String.Output(display_name="report", tooltip="The figures as text."),
                io.String.Output(display_name="json", tooltip="The figures as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, dataset, **_):
        return version(dataset)

    @classmethod
    def execute(cls, dataset, held_out):
        if not version(dataset):
            return nothing(cls, NOT_YET.format(dataset))
        with open_dataset(dataset) as store:
            figures = store.statistics(held_out)
        text = report(dataset, figures)
        return io.NodeOutput(text, json.dumps(figures, indent=1), ui={"text": [text]})


def report(name, figures):
    up, down = figures["thumbs"].values()
    thumbs = f", {up} thumbs up and {down} down" if up or down else ""
    lines = [
        f"{name}: {figures['sets']} sets, {figures['judged']} judged, {figures['unjudged']} to judge",
        f"{figures['judgements']} judgements: {figures['pairs']} pairs, {figures['ties']} ties{thumbs}",
        *(f"  {who}: {count}" for who, count in figures["annotators"].items()),
        f"train {figures['split']['train']}, held out {figures['split']['held_out']}",
        *(
            f"base model {model['name'] or fingerprint}: {model['sets']} sets"
            for fingerprint, model in figures["models"].items()
        ),
        f"{sum(figures['bytes'].values()) / 1e6:.1f} MB on disk",
    ]
    if figures["agreement"] is not None:
        lines.insert(2, f"annotators agree on {figures['agreement']:.0%} of the pairs that several judged")
    return "\n".join(lines)
