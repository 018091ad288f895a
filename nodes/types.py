"""Our sockets, and the LoRA that travels between our nodes."""

from dataclasses import dataclass, field

from comfy_api.latest import io

Trajectories = io.Custom("D3PO_TRAJECTORY")
PreferencesType = io.Custom("D3PO_PREFERENCES")
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")
CATEGORY = "D3PO"


@dataclass
class TrainingState:
    """All that training needs to go on from a LoRA exactly where it stopped."""

    tensors: dict
    step: int
    settings: dict
    model: str
    policy: str = ""
    history: list = field(default_factory=list)


class TrainedLora(dict):
    """A LORA_MODEL, which to the host is a state dict, with the state of its training."""

    def __init__(self, tensors, training):
        super().__init__(tensors)
        self.training = training
