"""Rules: arithmetic on scores, written by hand. A rule is read into functions of known operations, and is
never run as code."""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor

LONGEST, DEEPEST = 300, 30  # characters; operations inside one another
LARGEST, LARGEST_POWER = 1e30, 16  # numbers

Scores: TypeAlias = Mapping[str, Tensor]
Term: TypeAlias = Callable[[Scores], Tensor]

OPERATIONS: dict[type, Callable[..., Tensor]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Lt: lambda x, y: (x < y).float(),
    ast.LtE: lambda x, y: (x <= y).float(),
    ast.Gt: lambda x, y: (x > y).float(),
    ast.GtE: lambda x, y: (x >= y).float(),
    ast.Eq: lambda x, y: (x == y).float(),
    ast.NotEq: lambda x, y: (x != y).float(),
}
# name -> (function, how many values it takes; 0: two or more)
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "min": (lambda *values: reduce(torch.minimum, values), 0),
    "max": (lambda *values: reduce(torch.maximum, values), 0),
    "abs": (torch.abs, 1),
    "clip": (lambda x, low, high: torch.minimum(torch.maximum(x, low), high), 3),
    "where": (lambda condition, x, y: torch.where(condition != 0, x, y), 3),
}


@dataclass(frozen=True)
class Rule:
    """A rule over named scores, such as "a + 2 * min(b, 3)". Comparisons give 1 where they hold, else 0.

    text   as it was written
    names  of the scores that it uses, in alphabetical order
    value  of the scores of these names
    """

    text: str
    names: tuple[str, ...]
    value: Term

    @classmethod
    def read(cls, text: str, known: str = "abcd") -> "Rule":
        """Raises ValueError, with the place, for what is no rule over the known names, a letter each."""
        text = " ".join(text.split())
        if len(text) > LONGEST:
            raise ValueError(f"it has {len(text)} characters, but may have {LONGEST}")
        try:
            root = ast.parse(text, mode="eval").body
        except SyntaxError as error:
            place = min(error.offset or len(text) + 1, len(text) + 1)  # 0: at the end
            raise ValueError(f"{text!r} cannot be read, character {place}: {error.msg}") from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{text!r} cannot be read: {error}") from error
        reader = _Reader(text, known)
        value = reader.read(root)
        if not reader.names:
            raise ValueError(f"{text!r} uses no score: name at least one of {', '.join(known)}")
        return cls(text, tuple(sorted(reader.names)), value)

    def __call__(self, scores: Scores) -> Tensor:
        """[N] of the scores [N] of the names, all on one device; NaN where one of them is not finite."""
        used = torch.stack([scores[name] for name in self.names])
        found = self.value(scores).to(used).expand(used.shape[1:])
        return torch.where(used.isfinite().all(0), found, torch.nan)


class _Reader:
    def __init__(self, text: str, known: str) -> None:
        self.text, self.known, self.names = text, known, set[str]()

    def read(self, node: ast.expr, depth: int = 1) -> Term:
        if depth > DEEPEST:
            raise self.fault(node, f"more than {DEEPEST} operations are inside one another")
        if isinstance(node, ast.Name):
            return self.name(node)
        if isinstance(node, ast.Constant):
            number = self.number(node, LARGEST)
            return lambda scores: torch.tensor(number)  # made anew: one of inference mode has no gradients
        function, inner = self.operation(node)
        terms = [self.read(each, depth + 1) for each in inner]
        return lambda scores: function(*(term(scores) for term in terms))

    def name(self, node: ast.Name) -> Term:
        name = node.id
        if len(name) != 1 or name not in self.known:
            raise self.fault(node, f"{name} is no score; these are named {', '.join(self.known)}")
        self.names.add(name)
        return lambda scores: scores[name]

    def number(self, node: ast.expr, largest: float) -> float:
        sign = -1.0 if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else 1.0
        constant = node.operand if sign < 0 and isinstance(node, ast.UnaryOp) else node
        value = constant.value if isinstance(constant, ast.Constant) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > largest:
            raise self.fault(node, f"here must be a number, at most {largest:g}")
        return sign * value

    def operation(self, node: ast.expr) -> tuple[Callable[..., Tensor], list[ast.expr]]:
        """(function, what it is of)."""
        match node:
            case ast.BinOp(op=ast.Pow()):
                self.number(node.right, LARGEST_POWER)
                return OPERATIONS[ast.Pow], [node.left, node.right]
            case ast.BinOp(op=op) if type(op) in OPERATIONS:
                return OPERATIONS[type(op)], [node.left, node.right]
            case ast.UnaryOp(op=op) if type(op) in OPERATIONS:
                return OPERATIONS[type(op)], [node.operand]
            case ast.Compare(ops=[op], comparators=[right]) if type(op) in OPERATIONS:
                return OPERATIONS[type(op)], [node.left, right]
            case ast.Call(func=ast.Name(id=name), args=inner, keywords=[]) if name in FUNCTIONS:
                function, count = FUNCTIONS[name]
                if len(inner) == count or not count and len(inner) > 1:
                    return function, inner
                raise self.fault(node, f"{name} takes {count or 'two or more'} values, not {len(inner)}")
        raise self.fault(node, f"rules have + - * / **, < > and the like, and {', '.join(FUNCTIONS)} alone")

    def fault(self, node: ast.expr, why: str) -> ValueError:
        place = len(self.text.encode()[: node.col_offset].decode()) + 1
        return ValueError(f"{self.text!r}, character {place}: {why}")
