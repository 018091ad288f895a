"""Our sockets, and the LoRA that travels between our nodes."""

from dataclasses import dataclass, field
from pathlib import Path

from comfy_api.latest import io

from ..d3po_core.runs.looks import Look

Trajectories = io.Custom("D3PO_TRAJECTORY")
PreferencesType = io.Custom("D3PO_PREFERENCES")
ScorerType = io.Custom("D3PO_SCORER")  # a d3po_core.candidates.scorers.Scorer
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")
CATEGORY = "D3PO"
PICKS = "picks"  # source of Preferences that are a person's own, from the picker
TASTE = "taste"  # source of Preferences that nobody looked at: judged as the picks so far were
SKIPPED = "d3po_skipped"  # attachment of a MODEL: `TrainingState.skipped` of the run whose LoRA is on it


def scorer_output():
    return ScorerType.Output(
        display_name="scorer",
        tooltip="Wire to D3PO Reward Train Step, D3PO DOODL, D3PO ReNO, D3PO Best of N or D3PO Noise "
        "Search, or to a score of D3PO Score Preference.",
    )


@dataclass
class TrainingState:
    """All that training needs to go on from a LoRA exactly where it stopped.

    run      folder of the run that it was loaded from: there a train step keeps its progress. A train step's
             output has none, as the state that it goes on from is not on disk yet
    home     folder of the run that it, or what it goes on from, was loaded from: there Save Run puts it
    head     what that run was when it was loaded (runs.head): while it is, this state may take its place
    rounds   what each round was trained on: its first step, its key (progress.py), its sets with their pairs
    unsaved  the Progress of each train step since the run was loaded, of no use once this state is saved
    look     what pictures had become when it was trained, where a VAE was there to show it
    initial  what a state of no steps starts from, of a LoRA file: a layer's path -> (up, down, alpha)
    """

    tensors: dict
    step: int
    settings: dict
    model: str
    policy: str = ""
    history: list = field(default_factory=list)
    run: Path | None = None
    rounds: list = field(default_factory=list)
    unsaved: list = field(default_factory=list)
    initial: dict = field(default_factory=dict)
    home: Path | None = None
    head: str | None = None
    look: Look | None = None

    @property
    def skipped(self):
        """How many rounds there were since the last update: nobody preferred anything in them."""
        return sum(round_["start"] == self.step for round_ in self.rounds)


class TrainedLora(dict):
    """A LORA_MODEL, which to the host is a state dict, with the state of its training."""

    def __init__(self, tensors, training):
        super().__init__(tensors)
        self.training = training
