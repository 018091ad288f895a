"""A setting: its default, its bounds, its words, and the methods that it is for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .methods import METHODS, NOISED, RECORDED, Method

Value: TypeAlias = int | float | str
MOST = 100_000  # updates


@dataclass(frozen=True)
class Setting:
    """What there is to know of a setting.

    options   what it can be, for a choice; a number lies from low to high, and the page goes by step
    tooltip   in an artist's words, with its paper's value
    advanced  rarely changed
    own_of    the methods that it is a setting of: with any other it keeps its default. None: of all
    used_by   the methods that it makes a difference to. None: to all
    defaults  by method, where a method's is not the default of all
    """

    default: Value
    tooltip: str
    low: float = 0
    high: float = 0
    step: float | None = None
    options: tuple[str, ...] = ()
    advanced: bool = False
    own_of: tuple[str, ...] | None = None
    used_by: tuple[str, ...] | None = None
    defaults: dict[str, float] = field(default_factory=dict)

    def is_used_by(self, method: str) -> bool:
        return all(names is None or method in names for names in (self.own_of, self.used_by))

    def taken(self, name: str, value: Value) -> Value:
        """The value in its own type. Raises ValueError where it is none that this setting can have."""
        try:
            value = type(self.default)(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name} is {value!r}, but must be a number") from None
        if self.options and value not in self.options:
            raise ValueError(f"{name} is {value!r}, but must be one of: {', '.join(self.options)}")
        if not isinstance(value, str) and not self.low <= value <= self.high:
            raise ValueError(f"{name} is {value:g}, but must lie from {self.low:g} to {self.high:g}")
        return value


def setting(default: Value, tooltip: str, **about: Any) -> Any:
    """A dataclass field that is a setting."""
    return field(default=default, metadata={"setting": Setting(default, tooltip, **about)})


def those(where: Callable[[Method], bool]) -> tuple[str, ...]:
    """Names of the methods of a kind."""
    return tuple(name for name, method in METHODS.items() if where(method))


ON_STEPS = those(lambda method: method.terms != NOISED)
ON_DRAWS = those(lambda method: method.terms != RECORDED)
# D3PO on images without a recording is Diffusion-DPO, which is a method of its own
ON_EITHER = tuple(name for name in ON_DRAWS if name != "D3PO")
