"""What a train step is to do, of its own widgets, its preset and D3PO Train Settings."""

from dataclasses import asdict, dataclass

from ...d3po_core.runs.store import SHAPE
from ...d3po_core.training.presets import PAPER, resolved, sized
from ...d3po_core.training.settings import Settings
from ...d3po_core.training.step_settings import GUIDANCE
from .passing import passed_over


@dataclass(frozen=True)
class Plan:
    """What to do. guidance None: as recorded."""

    settings: Settings
    shape: dict
    learn_from: str
    guidance: float | None
    dropout: float
    evaluate_every: int
    patience: int
    stop_kl: float
    save_every: int

    @classmethod
    def of(cls, preferences, flow, strength=PAPER, settings=None, **widgets):
        """A plan for judged sets, of a flow model or another, of a preset's name, of values that go before
        it, and of the train step's widgets.

        Among the widgets may be any setting, also as "method.NAME": prompts from before D3PO Train Settings
        have them all there.
        """
        widgets = {name.removeprefix("method."): value for name, value in widgets.items()}
        if not widgets.get("epochs"):
            widgets.pop("epochs", None)
        method = widgets.get("method", Settings().method)
        sets = len(preferences) - len(passed_over(preferences, method))
        settings, step = resolved(sized(strength, sets, flow) | widgets | (settings or {}))
        own = asdict(step)
        shape = {name: own.pop(name) for name in SHAPE}
        guidance = None if own.pop("guidance") == GUIDANCE[0] else 1.0
        return cls(settings, shape, guidance=guidance, **own)

    @property
    def described(self):
        """What a run notes of it."""
        own = {
            name: getattr(self, name)
            for name in ("dropout", "evaluate_every", "learn_from", "patience", "stop_kl")
        }
        return asdict(self.settings) | self.shape | own

    def require_held_out(self, held_out):
        """Raises ValueError where training is to stop by what it has no sets or no time to measure."""
        if self.patience and (held_out is None or not self.evaluate_every):
            raise ValueError(
                "patience: there is nothing to be patient about. Wire judged sets to held_out and set "
                "evaluate_every, or set patience to 0"
            )
