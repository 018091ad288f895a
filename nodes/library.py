"""Runs and LoRA files on disk."""

import math
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import comfy.weight_adapter
import folder_paths
from comfy_api.latest import io

from ..d3po_core.runs import store
from ..d3po_core.runs.files import content_name
from ..d3po_core.runs.lineage import NOT_PAST
from ..d3po_core.runs.looks import read_look
from ..d3po_core.runs.store import load_run, run_folder, run_version, save_run
from ..d3po_core.training.lora_files import joined, load_lora, to_parts, to_state_dict
from . import host
from .lora_files import metadata, write_lora
from .lora_names import layer_of
from .together import written_by_first
from .types import CATEGORY, SKIPPED, LoraModel, TrainedLora, TrainingState

NOTHING = "nothing"  # to start from


def runs_root():
    return Path(folder_paths.get_output_directory()) / "d3po" / "runs"


class D3POLoadRun(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POLoadRun",
            display_name="D3PO Load Run",
            category=CATEGORY,
            search_aliases=["resume training", "continue lora", "load trained lora"],
            description=(
                "Puts a run's current LoRA on the model, for the sampler, and hands it to the train step "
                "to go on from. A run that does not exist yet starts with the model as it is."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The base model. Wire the same to the train step."),
                io.String.Input(
                    "run", default="my run", tooltip="Name of the run: a folder in output/d3po/runs."
                ),
                io.String.Input(
                    "checkpoint",
                    default=store.LATEST,
                    optional=True,
                    tooltip="Which of the run's states to go on from: latest, best (on held-out preferences) "
                    "or a number of steps that Manage Runs lists; 0 is the run as it began. Set it back "
                    "to latest after the next Save Run.",
                ),
                io.Combo.Input(
                    "start_from",
                    options=[NOTHING, *_startable()],
                    default=NOTHING,
                    optional=True,
                    tooltip="What a run that does not exist yet starts from: nothing, or a LoRA file of this "
                    "model's family, which training then goes on with. The train step's rank and "
                    "targets must have room for it. A run that exists goes on from its own LoRA.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with the run's LoRA: wire to the sampler."
                ),
                LoraModel.Output(
                    display_name="lora", tooltip="The run's LoRA and optimizer: wire to the train step."
                ),
                io.Int.Output(display_name="steps", tooltip="Optimizer steps made so far."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run, start_from=NOTHING, **_):
        # what comes over a wire is None, as the host does not say what it will be: look at all
        folders = sorted(runs_root().glob("*")) if run is None else [run_folder(runs_root(), run)]
        files = _startable() if start_from is None else [start_from]
        paths = [Path(path) for path in (folder_paths.get_full_path("loras", name) for name in files) if path]
        return [
            *map(run_version, folders),
            *((path.stat().st_mtime_ns, path.stat().st_size) for path in paths),
        ]

    @classmethod
    def execute(cls, model, run, checkpoint=store.LATEST, start_from=NOTHING):
        folder, base = run_folder(runs_root(), run), host.fingerprint(model)
        head = store.head(
            folder
        )  # before the state: what another ComfyUI saves in between must not be taken for it
        tensors, record = load_run(folder, checkpoint) or (
            {},
            {"step": 0, "settings": {}, "model": base, "history": [], "rounds": []},
        )
        if record["model"] != base:
            raise ValueError(
                f"run: {run!r} was trained on another base model. Load that model, or choose another name "
                "to start a new run"
            )
        state = TrainingState(
            tensors,
            record["step"],
            record["settings"],
            base,
            history=record["history"],
            run=folder,
            rounds=record["rounds"],
            home=folder,
            head=head,
            look=read_look(folder, record),
        )
        tuned, lines = with_lora(model, state), []
        if not state.step and start_from != NOTHING:
            tuned, state.initial, lines = begin_from(model, start_from)
        if state.skipped:
            tuned = tuned.clone()
            tuned.set_attachments(SKIPPED, state.skipped)
        state.policy = host.policy_name(tuned)
        return io.NodeOutput(
            tuned,
            TrainedLora(file_of(state) if state.step else {}, state),
            state.step,
            ui={"text": lines} if lines else None,
        )


def with_lora(model, training):
    """A MODEL with a training's LoRA on it, or with the one that it starts from."""
    if training.step:
        tuned, _ = comfy.sd.load_lora_for_models(model, None, file_of(training), 1.0, 0)
        host.carry(tuned, content_name(_weights_of(training)))
        return tuned
    if not training.initial:
        return model
    tuned = model.clone()
    adapter = comfy.weight_adapter.LoRAAdapter
    tuned.add_patches(
        {
            f"diffusion_model.{path}.weight": adapter(set(), (*weights, None, None, None))
            for path, weights in training.initial.items()
        },
        1.0,
    )
    host.carry(
        tuned,
        content_name(
            {
                f"{path} {part}": tensor
                for path, weights in training.initial.items()
                for part, tensor in zip(("up", "down"), weights)
            }
        ),
    )
    return tuned


def _weights_of(training):
    """The adapter's weights in a TrainingState."""
    return {k.removeprefix("lora."): v for k, v in training.tensors.items() if k.startswith("lora.")}


def file_of(training, rename=None):
    """A LoRA file's tensors of a TrainingState."""
    settings = training.settings
    return to_state_dict(_weights_of(training), settings["alpha"], rename, settings["adapter"])


def file_of_parts(training, parts):
    """The same for a program whose layers are parts of the model's, by path (to_parts)."""
    settings = training.settings
    return to_parts(_weights_of(training), settings["alpha"], parts, settings["adapter"])


def layers_of(training):
    """Paths of the layers that a TrainingState's LoRA is on."""
    return [name.removesuffix(".alpha") for name in file_of(training, str) if name.endswith(".alpha")]


def _startable():
    """LoRA files by their names in the host's lists; other kinds of file could run code when they are
    read."""
    return [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]


def begin_from(model, name):
    """A LoRA file on a model: (the model with it, a layer's path -> (up, down, alpha), what is left out in
    words).

    The host reads it, so that all names of layers will do that its own Load LoRA knows.
    """
    tensors, _ = load_lora(folder_paths.get_full_path_or_raise("loras", name))
    tensors = comfy.lora_convert.convert_lora(tensors)
    patches = comfy.lora.load_lora(
        tensors, comfy.lora.model_lora_keys_unet(model.model, {}), log_missing=False
    )
    if not patches:
        raise ValueError(
            f"start_from: {name} has nothing for this model. Choose a LoRA for models of its family"
        )
    parts = {}
    for key, patch in patches.items():
        path, rows, change = layer_of(key)
        shape = comfy.utils.get_attr(model.model, key if isinstance(key, str) else key[0]).shape
        plain = _plain_lora(name, patch, (rows[1], *shape[1:]) if rows else shape)
        parts.setdefault((path, shape[0]), []).append((*plain, rows, change))
    initial = {path: joined(of_layer, outputs) for (path, outputs), of_layer in parts.items()}
    read = set().union(*(patch.loaded_keys for patch in patches.values()))
    tuned = model.clone()
    tuned.add_patches(patches, 1.0)
    host.carry(tuned, content_name({part: tensors[part] for part in read}))
    left = sorted(tensors.keys() - read)
    lines = [f"{name}: {len(initial)} layers"]
    if left:
        lines.append(
            f"{len(left)} tensors are left out, as they are for the text encoder, which is not trained, or "
            f"for layers that this model does not have: {left[0]} and others"
        )
    return tuned, initial, lines


def _plain_lora(name, patch, shape):
    """(up, down, alpha) of what the host made of a file for a weight, or rows of one, of this shape."""
    if not isinstance(patch, comfy.weight_adapter.LoRAAdapter) or any(
        part is not None for part in patch.weights[3:]
    ):
        raise ValueError(
            f"start_from: {name} is not a plain LoRA; it has weights of another kind, such as DoRA's or "
            "LyCORIS'. Choose another file"
        )
    up, down, alpha = patch.weights[:3]
    if len(up) * down[0].numel() != math.prod(shape) or up[0].numel() != len(down):
        raise ValueError(
            f"start_from: {name} is for another base model, as its layers have another size. Choose a "
            "LoRA for models of this one's family"
        )
    return up, down, alpha


class D3POSaveRun(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POSaveRun",
            display_name="D3PO Save Run",
            category=CATEGORY,
            search_aliases=["save training", "checkpoint"],
            description=(
                "Keeps a trained LoRA with its optimizer under a name, so that the next run of the "
                "workflow goes on from there. The LoRA also appears in Load LoRA's list, as d3po/NAME."
            ),
            inputs=[
                LoraModel.Input("lora", tooltip="The LoRA from the train step."),
                io.String.Input(
                    "run",
                    default="",
                    tooltip=(
                        "Empty: the run that the LoRA came from by Load Run. A name is for a LoRA that did "
                        "not, or to save a copy under a new name."
                    ),
                ),
                io.Int.Input(
                    "keep",
                    default=3,
                    min=1,
                    max=1000,
                    optional=True,
                    tooltip="How many of the run's last states to keep as checkpoints, to go back to by Load "
                    "Run. The best on held-out preferences is kept as well.",
                ),
            ],
            outputs=[io.Int.Output(display_name="steps", tooltip="Optimizer steps made so far.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, lora, run, keep=3):
        training = training_of(lora, untrained=True)
        if not run.strip():
            if training.home is None:
                raise ValueError(
                    "run: this LoRA does not come from D3PO Load Run, so there is no run to save it to. Wire "
                    "Load Run's lora to the train step, or write a name here"
                )
            run = training.home.name
        warned, lines, name = written_by_first(lambda: cls.write(lora, training, run, keep))
        return io.NodeOutput(
            training.step, ui={"text": ["\n".join(lines)], "warnings": warned, "run": [name]}
        )

    @classmethod
    def write(cls, lora, training, run, keep):
        """Save a run and its copy for Load LoRA: (warnings, lines to tell, the run's name)."""
        folder = run_folder(runs_root(), run)
        saved = save_run(
            folder,
            training.tensors,
            {
                "step": training.step,
                "settings": training.settings,
                "model": training.model,
                "history": training.history,
                "rounds": training.rounds,
            },
            keep,
            training.head if folder == training.home else None,
            training.look,
        )
        for progress in training.unsaved:
            progress.remove()
        warned = [_branched(training, run, saved)] if saved.run != run else []
        lines = [*warned, f"{saved.run}: {training.step} steps"]
        if saved.why and not warned:
            lines.append(f"Nothing was written: {saved.why}")
        elif lora:
            try:
                write_lora(on_shelf(saved.run), lora, metadata(training, saved.run))
            except OSError as error:  # on Windows, while Load LoRA has it open
                lines.append(f"The run is saved. Its copy for Load LoRA is not: {error}")
        return warned, lines, saved.run


def _branched(training, run, saved):
    """What a person is told of a state that is kept beside the run that it was saved as."""
    if saved.why != NOT_PAST:
        reason = ""
    elif training.home is None:
        reason = (
            "It began anew, as no D3PO Load Run is above it: wire D3PO Load Run's lora to the train step "
            "to go on. "
        )
    elif training.home.name != run:
        reason = f"It comes from the run {training.home.name!r}: leave run empty to save it there. "
    else:
        reason = "Another ComfyUI, or another save in this workflow, has saved to it since it was loaded. "
    return (
        f"The run {run!r} was left as it is, for {saved.why}. {reason}This LoRA is kept as a run of its own, "
        f"{saved.run!r}: write that name in Load Run to go on with it"
    )


def on_shelf(run):
    """Where Load LoRA finds a run's LoRA."""
    return Path(folder_paths.get_output_directory()) / "loras" / "d3po" / f"{run}.safetensors"


def events_folder(run):
    """Where TensorBoard finds a run's metrics: beside the runs, so that one look compares them all."""
    return Path(folder_paths.get_output_directory()) / "d3po" / "tensorboard" / run


def training_of(lora, untrained=False):
    """A LoRA's TrainingState; with untrained also where it has had rounds without an update and is still
    nothing."""
    if not isinstance(lora, TrainedLora):
        raise ValueError(
            "lora: this LoRA does not come from a D3PO node, so there is no training to keep; save it with "
            "Save LoRA Weights"
        )
    if not lora and not (untrained and lora.training.rounds):
        raise ValueError("lora: it is empty, as the run has not been trained yet")
    return lora.training
