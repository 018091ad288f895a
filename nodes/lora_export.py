"""A trained LoRA as a file, for this or other programs."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from .library import file_of, file_of_parts, layers_of, training_of
from .lora_files import metadata, write_lora
from .lora_names import diffusers_parts, kohya_names, require_names
from .types import CATEGORY, LoraModel

COMFYUI, KOHYA, DIFFUSERS = NAMINGS = ("ComfyUI", "kohya (A1111, Forge, diffusers)", "diffusers")


class D3POSaveLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POSaveLoRA",
            display_name="D3PO Save LoRA",
            category=CATEGORY,
            search_aliases=["export lora", "a1111", "kohya", "diffusers"],
            description=(
                "Saves a trained LoRA as a file for this or other programs, with a record of how it was "
                "trained."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The base model: it tells how other programs name its layers."
                ),
                LoraModel.Input("lora", tooltip="The LoRA from the train step or Load Run."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/d3po",
                    tooltip="Name of the file in the output folder; a number is added. Files under loras/ "
                    "appear in Load LoRA's list.",
                ),
                io.Combo.Input(
                    "naming",
                    options=list(NAMINGS),
                    default=COMFYUI,
                    tooltip="How layers are named in the file. ComfyUI's stock Load LoRA reads all of these. "
                    "A1111, Forge and kohya's trainers read kohya's; diffusers reads its own, and kohya's of "
                    "SD1.5, SD2 and SDXL.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, lora, filename_prefix, naming):
        training = training_of(lora, untrained=True)
        if not lora:
            return io.NodeOutput(
                ui={"text": ["Nothing was saved: no round has taught this LoRA anything yet"]}
            )
        tensors = dict(lora) if naming == COMFYUI else renamed(model, training, naming)
        return io.NodeOutput(ui={"text": [export(training, tensors, filename_prefix, naming)]})


def export(training, tensors, filename_prefix, naming=COMFYUI):
    """Write a LoRA file with a number behind its name, which no file has yet: its path in the output
    folder."""
    folder, name, counter, subfolder, prefix = folder_paths.get_save_image_path(
        filename_prefix, folder_paths.get_output_directory()
    )
    path, described = Path(folder) / f"{name}_{counter:05}_.safetensors", metadata(training, name)
    if naming == DIFFUSERS:  # which takes B as it is: it has the scale
        described |= {"ss_network_alpha": described["ss_network_dim"]}
    write_lora(path, tensors, described)
    return str(Path(subfolder) / path.name)


def renamed(model, training, naming):
    """A LoRA file's tensors for other programs. Raises ValueError for what they would not read, or spoil."""
    adapter = training.settings["adapter"]
    if adapter == "DoRA":
        raise ValueError(
            "naming: other programs than ComfyUI scale DoRA in ways of their own, so their images would be "
            "spoiled. Choose ComfyUI's naming; for other programs train with another adapter"
        )
    if naming == DIFFUSERS and adapter not in ("LoRA", "rsLoRA"):
        raise ValueError(
            f"naming: diffusers does not load {adapter}. Choose another naming; for diffusers train with the "
            "adapter LoRA or rsLoRA"
        )
    names = diffusers_parts(model) if naming == DIFFUSERS else kohya_names(model)
    require_names(names, layers_of(training), naming)
    return file_of_parts(training, names) if naming == DIFFUSERS else file_of(training, names.get)
