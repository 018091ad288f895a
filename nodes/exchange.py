"""Preferences from elsewhere, and for elsewhere."""

import hashlib
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..d3po_core.candidates.preferences import Preferences
from ..d3po_core.exchange.formats import WRITERS, ExchangeError, Record, read
from ..d3po_core.exchange.metadata import origin
from ..d3po_core.runs.store import run_folder
from . import host
from .stored import (
    ANNOTATORS,
    HELD_OUT,
    JOINING,
    LIMIT,
    NAME,
    SPLIT,
    SPLITS,
    DatasetHandle,
    DatasetType,
    counted,
    each_whole,
    open_dataset,
    told,
    version,
    with_judgements,
)
from .types import CATEGORY, PreferencesType

IMPORT_TOOL = "import"


def inside_input(name):
    """A file or folder in ComfyUI's input folder. Raises ValueError for a name that leads out of it."""
    root = Path(folder_paths.get_input_directory()).resolve()
    path = (root / name).resolve()
    if not name.strip() or path == root or not path.is_relative_to(root):
        raise ValueError(
            f"source: {name!r} does not lie in ComfyUI's input folder. Put the folder or file into it, and "
            "write its name here"
        )
    if not path.exists():
        raise ValueError(f"source: there is no {name!r} in ComfyUI's input folder")
    return path


class D3POImportPreferences(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POImportPreferences",
            display_name="D3PO Import Preferences",
            category=CATEGORY,
            search_aliases=["import pairs", "pick-a-pic", "hps", "winner loser folder", "chosen rejected"],
            description=(
                "Brings judged images into a dataset: folders of winners and losers, tables of path pairs "
                "(CSV, JSONL), D3PO scores, Pick-a-Pic and HPS files. What is there already is not brought "
                "in twice."
            ),
            inputs=[
                io.String.Input(
                    "source",
                    default="pairs",
                    tooltip="A folder or file in ComfyUI's input folder. Which format it is, is recognised.",
                ),
                io.String.Input("dataset", **NAME),
                io.String.Input(
                    "annotator",
                    default="import",
                    tooltip="The name under which the preferences are kept, where the format names nobody.",
                ),
                io.Combo.Input(
                    "problems",
                    options=["stop", "leave out"],
                    default="stop",
                    tooltip=(
                        "What a record that cannot be read does to the import. Nothing that was brought in "
                        "before it is lost."
                    ),
                ),
            ],
            outputs=[
                DatasetType.Output(
                    display_name="dataset", tooltip="Wire to D3PO Encode Image Pairs to train on it."
                ),
                io.Int.Output(display_name="sets", tooltip="How many sets were in the source."),
                io.String.Output(display_name="report", tooltip="What was brought in and what was left out."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, source, **_):
        if source is None:  # it comes over a wire, and the host does not say what it is
            return float("nan")
        path = inside_input(source)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return hashlib.sha256(
            repr([(str(file), file.stat().st_mtime_ns) for file in files]).encode()
        ).hexdigest()

    @classmethod
    def execute(cls, source, dataset, annotator, problems):
        left_out = []
        path = inside_input(source)
        handle = DatasetHandle(dataset, annotator)
        sets = added = 0
        with handle.open(create=True) as store:
            try:
                for record in read(path, left_out.append if problems == "leave out" else "raise"):
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    try:
                        added += bring_in(store, record, annotator)
                        sets += 1
                    except ExchangeError as error:
                        if problems == "stop":
                            raise
                        left_out.append(error)
            except ExchangeError as error:
                raise ValueError(
                    f'source: {error}. {sets} sets before it were brought in; set problems to "leave out" '
                    "to pass over what cannot be read"
                ) from error
        text = told(f"{dataset}: {added} new of {sets} sets from {source}", left_out)
        return io.NodeOutput(handle, sets, text, ui={"text": [text]})


def bring_in(store, record, annotator):
    """Add one judged record to a dataset, named by its prompt and pixels: whether it is new. A prompt that it
    lacks is taken from its pictures, which may say how they were made."""
    record.check_size()
    images = [torch.from_numpy(record.pixels(i)) for i in range(len(record.images))]
    digest = hashlib.sha256((record.prompt or "").encode())
    for image in images:
        digest.update(repr(tuple(image.shape)).encode())
        digest.update(image.numpy())
    name = digest.hexdigest()[:16]
    if len({image.shape for image in images}) > 1:
        images = fitted(images)
    origins = [origin(image) for image in record.images]
    prompt = record.prompt or next(filter(None, (each.prompt for each in origins)), None)
    known = [{what: value for what, value in each._asdict().items() if value is not None} for each in origins]
    settings = {"source": record.source} | ({"pictures": known} if any(known) else {})
    new = store.add_set(name, images=torch.stack(images), prompt=prompt, settings=settings)
    who = record.annotator or annotator
    if not any(
        entry.annotator == who and entry.judgement == record.judgement for entry in store.judgements(name)
    ):
        store.judge(name, record.judgement, who, IMPORT_TOOL)
    return new


def fitted(images):
    """Images of several sizes, uint8, scaled and cut about the middle to the smallest height and width among
    them."""
    height, width = min(i.shape[0] for i in images), min(i.shape[1] for i in images)
    out = []
    for image in images:
        scale = max(height / image.shape[0], width / image.shape[1])
        size = [max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))]
        levels = image.movedim(-1, 0)[None].float()
        grown = torch.nn.functional.interpolate(levels, size=size, mode="bicubic", antialias=True)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        out.append(
            grown[0, :, top : top + height, left : left + width].movedim(0, -1).clamp(0, 255).round().byte()
        )
    return out


class D3POExportPreferences(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POExportPreferences",
            display_name="D3PO Export Preferences",
            category=CATEGORY,
            search_aliases=["export pairs", "pick-a-pic", "hps", "csv", "jsonl"],
            description=(
                "Writes a dataset's judged images in a format that other trainers read, into "
                "output/d3po/exports."
            ),
            inputs=[
                io.String.Input("dataset", **NAME),
                io.Combo.Input(
                    "format",
                    options=list(WRITERS),
                    default="folders",
                    tooltip=(
                        "folders: w/ and l/ with equal names. csv, jsonl: a table of path pairs. d3po: "
                        "scores as the paper's code has them. pickapic: parquet. hps: HPDv2's JSON."
                    ),
                ),
                io.String.Input(
                    "name", default="my export", tooltip="Name of the new folder in output/d3po/exports."
                ),
                io.String.Input(
                    "annotator",
                    default="",
                    tooltip="Only this person's judgements. Empty: everybody's, one after the other.",
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="What was written, and where.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, dataset, **_):
        return version(dataset)

    @classmethod
    def execute(cls, dataset, format, name, annotator):
        folder = run_folder(Path(folder_paths.get_output_directory()) / "d3po" / "exports", name, "name")
        left_out = []
        with open_dataset(dataset) as store:
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                summary = WRITERS[format](
                    records_of(store, annotator, left_out), folder, on_problem=left_out.append
                )
            except ExchangeError as error:
                raise ValueError(f"name: {error}") from error
        text = told(
            f"{summary.pairs} pairs in {summary.records} sets, {summary.images} images: "
            f"output/d3po/exports/{name}",
            left_out,
        )
        return io.NodeOutput(text, ui={"text": [text]})


def records_of(store, annotator, left_out):
    """A dataset's judged sets that have images, one Record for each annotator's judgement that counts.
    `left_out` as each_whole has it."""
    rows = store.sets(judged=True, annotator=annotator or None)
    for row, (files, entries) in each_whole(
        rows, lambda row: (store.image_files(row.id), store.judgements(row.id)), left_out
    ):
        comfy.model_management.throw_exception_if_processing_interrupted()
        newest = {entry.annotator: entry.judgement for entry in entries}
        for who, judgement in newest.items():
            if files and judgement and judgement.is_finished and (not annotator or who == annotator):
                yield Record(row.prompt, tuple(files), judgement, who, row.id)


class D3POEncodePairs(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POEncodePairs",
            display_name="D3PO Encode Image Pairs",
            category=CATEGORY,
            search_aliases=["diffusion-dpo", "image pairs", "train on images", "winner loser"],
            description=(
                "Judged images of a dataset, for the train step: they need no recorded trajectory and "
                "train by Diffusion-DPO (arXiv 2311.12908). Images go through your VAE, prompts through "
                "your CLIP."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The base model: the one to train, a flow model (SD3, Flux) or any other.",
                ),
                io.Clip.Input("clip", tooltip="Its CLIP, for the prompts."),
                io.Vae.Input("vae", tooltip="Its VAE, for the images."),
                DatasetType.Input(
                    "dataset", tooltip="From D3PO Import Preferences, D3PO Load Sets or D3PO Save to Dataset."
                ),
                io.Combo.Input("split", **SPLIT),
                io.Float.Input("held_out", **HELD_OUT),
                io.String.Input("annotators", **ANNOTATORS),
                io.Combo.Input("joining", **JOINING),
                io.Int.Input("limit", default=0, **LIMIT),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the images of a set differ, such as the hands: training learns from that "
                    "part alone. One mask for all sets.",
                ),
            ],
            outputs=[
                PreferencesType.Output(
                    display_name="preferences", is_output_list=True, tooltip="Wire to the train step."
                ),
                io.Int.Output(display_name="pairs", tooltip="How many strict preferences there are."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        return version(None)

    @classmethod
    def execute(cls, model, clip, vae, dataset, split, held_out, annotators, joining, limit, mask=None):
        require_maskable(model, mask)
        empty = encode(clip, "")
        base, preferences, left_out = host.fingerprint(model), [], []
        with dataset.open() as store:
            rows = [
                row
                for row in store.sets(judged=True, split=SPLITS[split], held_out=held_out)
                if row.has_images
            ]
            judged = list(with_judgements(store, rows, annotators, joining, limit, left_out))
            bar = comfy.utils.ProgressBar(len(judged))
            for (row, answer), images in each_whole(judged, lambda item: store.images(item[0].id), left_out):
                conditioning = host.Conditioning(
                    encode(clip, row.prompt), empty, 1.0, torch.zeros(1, 1, 1, 1), 0
                )
                # one by one: to a video model's VAE several images are a video
                latents = torch.cat([vae.encode(image[None]) for image in images])
                inside = None if mask is None else host.mask_of(mask, latents.shape, "mask")
                clean = host.clean_candidates(model, latents, row.id, base, conditioning, inside)
                preferences.append(Preferences(clean, source=dataset.name, **answer))
                bar.update(1)
        if not preferences and split != "held out":  # nothing to measure on is no reason not to train
            raise ValueError(f"dataset: {dataset.name!r} has no judged images that fit these filters")
        return io.NodeOutput(
            preferences,
            sum(len(p.pairs) for p in preferences),
            ui={"text": [told(counted(dataset.name, preferences), left_out)]},
        )


def require_maskable(model, mask):
    """Raise ValueError for a mask where the network itself takes one, beside the image around it."""
    if mask is not None and model.model.concat_keys:
        raise ValueError(
            "mask: this is an inpainting model, which sees the image around the mask, and finished images "
            "may differ there. Record candidates with D3PO KSampler and Inpaint Model Conditioning, or take "
            "the plain model"
        )


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text or ""))
