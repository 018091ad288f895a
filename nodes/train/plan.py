"""What the train step's widgets say."""

from dataclasses import asdict, dataclass

from ...d3po_core.runs.store import SHAPE
from ...d3po_core.training import loop
from ...d3po_core.training.adapter import ADAPTERS
from .schema import chosen

GUIDANCE = ("as recorded", "off (faster)")
DEFAULTS = {
    "adapter": ADAPTERS[0],
    "dropout": 0.0,
    "evaluate_every": 0,
    "patience": 0,
    "stop_kl": 0.0,
}  # may be left out


@dataclass(frozen=True)
class Plan:
    """What the widgets say. guidance None: as recorded."""

    settings: loop.Settings
    shape: dict
    learn_from: str
    guidance: float | None
    dropout: float
    evaluate_every: int
    patience: int
    stop_kl: float

    @classmethod
    def of(cls, method, widgets):
        values = DEFAULTS | {name: value[0] for name, value in widgets.items()}
        shape = {name: values.pop(name) for name in SHAPE}
        own = {name: values.pop(name) for name in ("dropout", "evaluate_every", "patience", "stop_kl")}
        guidance = None if values.pop("guidance") == GUIDANCE[0] else 1.0
        learn_from, of_method = chosen(method or {"method": [loop.Settings().method]})
        return cls(loop.Settings(**values, **of_method), shape, learn_from, guidance, **own)

    @property
    def described(self):
        """What a run notes of it."""
        own = {
            name: getattr(self, name)
            for name in ("dropout", "evaluate_every", "learn_from", "patience", "stop_kl")
        }
        return asdict(self.settings) | self.shape | own
