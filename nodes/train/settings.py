"""D3PO Train Settings: all of the train step's settings that an artist rarely needs."""

from comfy_api.latest import io

from ..types import CATEGORY
from .schema import ON_SETTINGS, SettingsType, widget


class D3POTrainSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POTrainSettings",
            display_name="D3PO Train Settings",
            category=CATEGORY,
            search_aliases=["learning rate", "beta", "optimizer", "adapter", "dora", "early stopping"],
            description="All settings of D3PO LoRA Train Step that it does not show itself. Wired to it, "
            "what stands here takes the place of the train step's 'strength'.",
            inputs=[widget(name) for name in ON_SETTINGS],
            outputs=[
                SettingsType.Output(display_name="settings", tooltip="Wire to one or several train steps.")
            ],
        )

    @classmethod
    def execute(cls, **values):
        return io.NodeOutput(values)
