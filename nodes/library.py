"""Runs and LoRA files on disk."""

import json
from datetime import datetime, timezone
from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..d3po_core.lora import from_state_dict, save_lora, to_state_dict
from ..d3po_core.runs import load_run, replace_whole, run_folder, run_version, save_run
from . import host
from .types import CATEGORY, LoraModel, TrainedLora, TrainingState

# the host's name of a model family -> ModelSpec's
ARCHITECTURES = {"SD15": "stable-diffusion-v1", "SD20": "stable-diffusion-v2-512", "SD21": "stable-diffusion-v2-768-v",
                 "SDXL": "stable-diffusion-xl-v1-base"}
NAMINGS = ("ComfyUI", "kohya (A1111, Forge, diffusers)")


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
            description="Puts a run's current LoRA on the model, for the sampler, and hands it to the train step to go "
                        "on from. A run that does not exist yet starts with the model as it is.",
            inputs=[
                io.Model.Input("model", tooltip="The base model. Wire the same to the train step."),
                io.String.Input("run", default="my run", tooltip="Name of the run: a folder in output/d3po/runs."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the run's LoRA: wire to the sampler."),
                LoraModel.Output(display_name="lora", tooltip="The run's LoRA and optimizer: wire to the train step."),
                io.Int.Output(display_name="steps", tooltip="Optimizer steps made so far."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run, **_):
        if run is None:  # it comes over a wire, and the host does not say which run it names: look at all
            return max((run_version(folder) for folder in runs_root().glob("*")), default=0)
        return run_version(run_folder(runs_root(), run))

    @classmethod
    def execute(cls, model, run):
        loaded = load_run(run_folder(runs_root(), run))
        base = host.fingerprint(model)
        if loaded is None:
            empty = TrainedLora({}, TrainingState({}, 0, {}, base, host.policy_name(model)))
            return io.NodeOutput(model, empty, 0)
        tensors, record = loaded
        if record["model"] != base:
            raise ValueError(f"run: {run!r} was trained on another base model. Load that model, or choose another name "
                             "to start a new run")
        weights = {k.removeprefix("lora."): v for k, v in tensors.items() if k.startswith("lora.")}
        lora = to_state_dict(weights, record["settings"]["alpha"])
        tuned, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)
        tuned.set_attachments("d3po_run", [run, record["step"]])
        state = TrainingState(tensors, record["step"], record["settings"], base, host.policy_name(tuned),
                              record["history"])
        return io.NodeOutput(tuned, TrainedLora(lora, state), record["step"])


class D3POSaveRun(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POSaveRun",
            display_name="D3PO Save Run",
            category=CATEGORY,
            search_aliases=["save training", "checkpoint"],
            description="Keeps a trained LoRA with its optimizer under a name, so that the next run of the workflow goes "
                        "on from there. The LoRA also appears in Load LoRA's list, as d3po/NAME.",
            inputs=[
                LoraModel.Input("lora", tooltip="The LoRA from the train step."),
                io.String.Input("run", default="my run", tooltip="Name of the run: the same as in Load Run."),
            ],
            outputs=[io.Int.Output(display_name="steps", tooltip="Optimizer steps made so far.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, lora, run):
        training = _training_of(lora)
        folder = run_folder(runs_root(), run)
        save_run(folder, training.tensors, {"step": training.step, "settings": training.settings,
                                            "model": training.model, "history": training.history})
        shelf = Path(folder_paths.get_output_directory()) / "loras" / "d3po"
        shelf.mkdir(parents=True, exist_ok=True)
        replace_whole(shelf / f"{run}.safetensors", lambda path: save_lora(lora, path, metadata(training, run)))
        return io.NodeOutput(training.step, ui={"text": [f"{run}: {training.step} steps"]})


class D3POSaveLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POSaveLoRA",
            display_name="D3PO Save LoRA",
            category=CATEGORY,
            search_aliases=["export lora", "a1111", "kohya", "diffusers"],
            description="Saves a trained LoRA as a file for this or other programs, with a record of how it was trained.",
            inputs=[
                io.Model.Input("model", tooltip="The base model: it tells how other programs name its layers."),
                LoraModel.Input("lora", tooltip="The LoRA from the train step or Load Run."),
                io.String.Input("filename_prefix", default="loras/d3po",
                                tooltip="Name of the file in the output folder; a number is added. Files under loras/ "
                                        "appear in Load LoRA's list."),
                io.Combo.Input("naming", options=list(NAMINGS), default=NAMINGS[0],
                               tooltip="How layers are named in the file. ComfyUI's stock Load LoRA reads both; A1111, "
                                       "Forge and diffusers read kohya's."),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, lora, filename_prefix, naming):
        training = _training_of(lora)
        tensors = dict(lora)
        if naming != NAMINGS[0]:
            weights, alpha = from_state_dict(lora)
            tensors = to_state_dict(weights, alpha, kohya_names(model))
        folder, name, counter, subfolder, prefix = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory())
        path = Path(folder) / f"{name}_{counter:05}_.safetensors"
        replace_whole(path, lambda partial: save_lora(tensors, partial, metadata(training, name)))
        return io.NodeOutput(ui={"text": [str(Path(subfolder) / path.name)]})


def kohya_names(model):
    """path -> "lora_unet_" + the layer's diffusers path with underscores. Raises ValueError for other than UNets."""
    config = model.model.model_config.unet_config
    if "num_res_blocks" not in config:
        raise ValueError("naming: kohya's names are known for SD1.5, SD2 and SDXL only; save with ComfyUI's naming")
    diffusers = {theirs.removesuffix(".weight"): name.removesuffix(".weight")
                 for name, theirs in comfy.utils.unet_to_diffusers(config).items() if name.endswith(".weight")}

    def rename(path):
        return "lora_unet_" + diffusers[path].replace(".", "_")
    return rename


def metadata(training, title):
    """What other programs look for in a LoRA file, and the training record."""
    settings, family = training.settings, training.settings["architecture"]
    now = datetime.now(timezone.utc).replace(microsecond=0).isoformat()
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{ARCHITECTURES.get(family, family)}/lora",
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI", "modelspec.title": title,
        "modelspec.date": now, "ss_network_module": "networks.lora", "ss_network_dim": str(settings["rank"]),
        "ss_network_alpha": str(settings["alpha"]), "ss_learning_rate": str(settings["learning_rate"]),
        "ss_steps": str(training.step), "ss_training_comment": "D3PO (arXiv 2311.13231)", "ss_seed": str(settings["seed"]),
        "d3po": json.dumps({"settings": settings, "step": training.step, "model": training.model}),
    }


def _training_of(lora):
    if not isinstance(lora, TrainedLora):
        raise ValueError("lora: this LoRA does not come from a D3PO node, so there is no training to keep; save it with "
                         "Save LoRA Weights")
    if not lora:
        raise ValueError("lora: it is empty, as the run has not been trained yet")
    return lora.training
