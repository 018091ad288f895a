"""A trained LoRA as a file, for this or other programs."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from .library import file_of, training_of
from .lora_files import kohya_names, metadata, write_lora
from .types import CATEGORY, LoraModel

NAMINGS = ("ComfyUI", "kohya (A1111, Forge, diffusers)")


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
                    default=NAMINGS[0],
                    tooltip="How layers are named in the file. ComfyUI's stock Load LoRA reads both; A1111, "
                    "Forge and diffusers read kohya's.",
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
        if naming != NAMINGS[0] and training.settings["adapter"] == "DoRA":
            raise ValueError(
                "naming: other programs than ComfyUI scale DoRA in ways of their own, so their images would "
                "be spoiled. Choose ComfyUI's naming; for other programs train with another adapter"
            )
        tensors = dict(lora) if naming == NAMINGS[0] else file_of(training, kohya_names(model))
        folder, name, counter, subfolder, prefix = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        path = Path(folder) / f"{name}_{counter:05}_.safetensors"
        write_lora(path, tensors, metadata(training, name))
        return io.NodeOutput(ui={"text": [str(Path(subfolder) / path.name)]})
