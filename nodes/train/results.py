"""What both train steps hand on."""

import comfy.sd
from comfy_api.latest import io

from ...d3po_core.runs.files import content_name
from ...d3po_core.training.lora_files import to_state_dict
from .. import host
from ..types import LoraModel, LossMap, TrainedLora


def outputs(measured):
    """measured: what the loss map holds first, in words."""
    return [
        io.Model.Output(display_name="model", tooltip="The model with the trained LoRA on it."),
        LoraModel.Output(
            display_name="lora",
            tooltip="The trained LoRA: wire to Save Run, Save LoRA or Load LoRA Model.",
        ),
        LossMap.Output(
            display_name="loss_map",
            tooltip=f"{measured} and other metrics of every update of the run: wire to D3PO Plot, or Plot "
            "Loss Graph.",
        ),
        io.Int.Output(display_name="steps", tooltip="Optimizer steps the LoRA has had in all."),
        io.String.Output(display_name="report", tooltip="What was learned, in words and numbers."),
    ]


def handed_on(model, out, shape, state):
    """(the MODEL with an Outcome's LoRA on it, the TrainedLora); the run's state is told what it samples
    by."""
    tensors = to_state_dict(out.weights, shape["alpha"], adapter=shape["adapter"])
    tuned, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0)
    host.carry(tuned, content_name(out.weights))
    state.policy = host.policy_name(tuned)
    return tuned, TrainedLora(tensors, state)


def ended_early(why):
    """What a node's ui says of training that ended before its last update, for `dev.py run --until-stop`."""
    return {"stopped": [why]} if why else {}


def went_on(resumed):
    """That training went on after so many updates, in words; "" where it began anew."""
    return resumed and f"Went on after update {resumed} of this round, where training had been stopped"
