"""The recorded candidates of one prompt: all latents on the way from noise to image."""

import hashlib
import json
import zlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .kernels import Ancestral, Kernel, described, kernel_of

FORMAT = "d3po.trajectory/2"
WINDOW_FORMAT = "d3po.trajectory/3"  # of some steps of a schedule, and with the finished latents
MASK_FORMAT = "d3po.trajectory/4"  # sampled inside a mask; of a window or not
FIRST_FORMAT = "d3po.trajectory/1"  # it has the eta of an Ancestral in place of a kernel

# tensors in a file
PARTS, WINDOW_PARTS, MASK_PARTS = ("states", "denoised", "sigmas"), ("schedule", "final"), ("mask", "noise")
IN_STEPS = ("states", "denoised", "final")  # of these, what is read where it is indexed

Index: TypeAlias = int | slice


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a safetensors file, read where it is indexed by an int, a slice or a tuple of these.

    Indexing gives an ordinary tensor with memory of its own. The file is open only while it is read. torch's
    functions accept a LazyTensor and read all of it, but zeros_like reads nothing.

    checksums  one for each step, self[i]; None where the file has none. A step is always read and checked as
               a whole, even where the index asks for a part of it. This takes about a millisecond a megabyte

    Raises ValueError, naming the file, if it can no longer be read, is damaged, or holds a number that is not
    finite.
    """

    path: Path
    name: str
    shape: torch.Size
    dtype: torch.dtype
    checksums: tuple[str, ...] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Tensor:
        first, *inner = index if isinstance(index, tuple) else (index,)
        steps = range(len(self))[first]
        try:
            with safe_open(self.path, framework="pt") as file:
                read = file.get_slice(self.name)[first]
                for i, step in [(steps, read)] if isinstance(steps, int) else zip(steps, read):
                    self._check(i, step)
                part = tuple(inner) if isinstance(steps, int) else (slice(None), *inner)
                kept: Tensor = read[part].clone()  # a view would keep the file open
                return kept
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path}: {self.name} cannot be read ({error})") from error

    def _check(self, i: int, step: Tensor) -> None:
        if self.checksums and checksum(step) != self.checksums[i]:
            raise ValueError(
                f"{self.path} is damaged: step {i} of {self.name} is not what was written. Put a copy of the "
                "file back, or delete the file, and its set is left out"
            )
        if not step.isfinite().all():
            raise ValueError(
                f"{self.path}: step {i} of {self.name} holds numbers that are not finite, so its candidates "
                "cannot be trained on. Delete the file, and its set is left out. Record them again with the "
                "model in bf16 or fp32"
            )

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is torch.zeros_like:
            return torch.zeros(args[0].shape, **{"dtype": args[0].dtype, **(kwargs or {})})

        def read(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(read, value))
            return value[:] if isinstance(value, cls) else value

        return function(*read(args), **{name: read(value) for name, value in (kwargs or {}).items()})


def checksum(tensor: Tensor) -> str:
    """CRC-32 of a tensor's bytes, as eight hexadecimal digits."""
    return f"{zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data):08x}"


@dataclass
class Trajectory:
    """N candidates that share their initial noise and differ by the noise of the steps.

    states        [T + 1, N, C, H, W] float32: x at sigmas[0] ... sigmas[T], in the model's latent space
    denoised      [T, N, C, H, W] float32: the sampling policy's x0 at each state, guidance applied
    sigmas        [T + 1] float32, falling
    kernel        the transition between neighbouring states
    set_id        names the set: the same graph gives the same name on every machine
    model         fingerprint of the base model's weights
    policy        names the weights that sampled and, after a space, what else was on the model, as
                  "KINDS:OBJECTS". Where it is the reference's name, `denoised` is the reference's x0
    settings      seed, cfg and whatever else describes the sampling; JSON values
    conditioning  whatever the host's denoiser needs besides x and sigma; opaque here and not saved
    schedule      [K + 1] float32: all noise levels of the sampling, where only a window of its steps was
                  random and is recorded: sigmas are a part of it. None where they are all of it
    final         [N, C, H, W] float32: the finished latents of a window. None where they are the last state
    mask          [1, C, H, W] float32, 0...1: the part of the latent that was sampled. The rest is the image
                  that sampling began with. None where all was
    noise         [1, C, H, W] float32: the noise under which the rest went through the network. None without
                  a mask

    states, denoised and final are LazyTensors where the trajectory was opened rather than loaded.
    """

    recorded: ClassVar[bool] = True

    states: Tensor | LazyTensor
    denoised: Tensor | LazyTensor
    sigmas: Tensor
    kernel: Kernel
    set_id: str
    model: str
    policy: str
    settings: dict[str, Any] = field(default_factory=dict)
    conditioning: object = None
    schedule: Tensor | None = None
    final: Tensor | LazyTensor | None = None
    mask: Tensor | None = None
    noise: Tensor | None = None

    def __post_init__(self) -> None:
        _require_levels(self.sigmas)
        steps = len(self.sigmas) - 1
        if len(self.states) != steps + 1 or len(self.denoised) != steps:
            raise ValueError(
                f"{len(self.sigmas)} sigmas need {steps + 1} states and {steps} denoised latents, "
                f"got {len(self.states)} and {len(self.denoised)}"
            )
        if self.states.shape[1:] != self.denoised.shape[1:]:
            raise ValueError(
                f"states {list(self.states.shape)} and denoised {list(self.denoised.shape)} differ"
            )
        if self.states.ndim < 3 or not self.count:
            raise ValueError(f"states {list(self.states.shape)} are of no candidates")
        if (self.schedule is None) != (self.final is None):
            raise ValueError("a window of steps has both the schedule that it is part of and final latents")
        if self.final is not None and self.final.shape != self.latent_shape:
            raise ValueError(f"final latents {list(self.final.shape)} are not {list(self.latent_shape)}")
        if (self.mask is None) != (self.noise is None):
            raise ValueError("what was sampled inside a mask has both the mask and the noise outside of it")
        if self.mask is not None and self.noise is not None:
            require_mask(self.mask, self.latent_shape)
            _require_noise(self.noise, self.mask)
        self.first = 0 if self.schedule is None else _place(self.sigmas, self.schedule)

    @property
    def count(self) -> int:
        """N"""
        return self.states.shape[1]

    @property
    def latent_shape(self) -> torch.Size:
        """[N, C, H, W] of the candidates."""
        return self.states.shape[1:]

    @property
    def finished(self) -> Tensor:
        """The latents that sampling ended with, [N, C, H, W]."""
        return self.states[-1] if self.final is None else self.final[:]

    @property
    def levels(self) -> Tensor:
        """All noise levels of the sampling, [K + 1]."""
        return self.sigmas if self.schedule is None else self.schedule

    def way(self, i: int) -> float:
        """How far on the way from noise to image step i begins, 0 to 1."""
        return (self.first + i) / (len(self.levels) - 1)

    @property
    def actions(self) -> list[int]:
        """Indices of the steps that are random, and so have a log-prob (std > 0)."""
        return [
            i for i in range(len(self.sigmas) - 1) if self.kernel.std(self.sigmas[i], self.sigmas[i + 1]) > 0
        ]

    @cached_property
    def ending(self) -> bytes:
        """Names a recording by what it ended with: one that is read from disk again is known again."""
        return hashlib.sha256(self.finished.cpu().contiguous().numpy().data).digest()

    def looked_at(self) -> tuple[Tensor, Tensor]:
        """(x [1, C, H, W], sigma 0-d) of the first candidate, halfway."""
        middle = len(self.sigmas) // 2
        return self.states[middle, :1], self.sigmas[middle]

    def save(self, path: Path) -> None:
        """Write tensors and settings, without the conditioning, to a safetensors file.

        A contiguous tensor is written without a copy. The metadata "d3po" is JSON. Its "checksums" hold the
        CRC-32 of each step of states and denoised, of the other tensors, and of the JSON without them
        ("header").
        Older files can still be read: those without checksums, and those of the first format.
        """
        window, mask = self.final is not None, self.mask is not None
        held = (*PARTS, *(WINDOW_PARTS if window else ()), *(MASK_PARTS if mask else ()))
        tensors = {name: getattr(self, name)[:].contiguous() for name in held}
        header = {
            "format": MASK_FORMAT if mask else WINDOW_FORMAT if window else FORMAT,
            "kernel": described(self.kernel),
            "set_id": self.set_id,
            "model": self.model,
            "policy": self.policy,
            "settings": self.settings,
        }
        checksums = {
            "header": _header_checksum(header),
            **{
                name: list(map(checksum, tensor)) if name in IN_STEPS else checksum(tensor)
                for name, tensor in tensors.items()
            },
        }
        save_file(tensors, path, metadata={"d3po": json.dumps(header | {"checksums": checksums})})

    @classmethod
    def load(cls, path: Path, conditioning: object = None) -> "Trajectory":
        """Read a file that `save` wrote.

        Raises ValueError, naming the file, if it is another kind of file, is damaged, or holds numbers that
        are not finite.
        """
        opened = cls.open(path, conditioning)
        final = None if opened.final is None else opened.final[:]
        return replace(opened, states=opened.states[:], denoised=opened.denoised[:], final=final)

    @classmethod
    def open(cls, path: Path, conditioning: object = None) -> "Trajectory":
        """Like `load`, but states and denoised are read and checked where they are indexed (LazyTensor).

        No file is kept open.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["d3po"])
                held = _held(header["format"], file.keys())
                for name, kind in {"set_id": str, "model": str, "policy": str, "settings": dict}.items():
                    if not isinstance(header[name], kind):
                        raise ValueError(f"its {name} is {header[name]!r:.80}")
                checksums = header.pop("checksums", {})
                plain: dict[str, Any] = {
                    name: file.get_tensor(name).clone() for name in held if name not in IN_STEPS
                }
                for name, now in {"header": _header_checksum(header), **_checksums(plain)}.items():
                    if checksums.get(name, now) != now:
                        raise ValueError(f"its {name} is not what was written")
                lazy: dict[str, Any] = {
                    name: _lazy(Path(path), name, file.get_slice(name), checksums.get(name))
                    for name in held
                    if name in IN_STEPS
                }
            is_first = header["format"] == FIRST_FORMAT
            return cls(
                kernel=Ancestral(header["eta"]) if is_first else kernel_of(header["kernel"]),
                **{name: header[name] for name in ("set_id", "model", "policy", "settings")},
                conditioning=conditioning,
                **lazy,
                **plain,
            )
        except (
            SafetensorError,
            OSError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ValueError(f"{path} is not a trajectory file, or is damaged ({error})") from error


def require_mask(mask: Tensor, latent_shape: Sequence[int]) -> None:
    """Raise ValueError for what is no mask of latents [N, C, H, W]: [1, C, H, W], 0...1, of something."""
    if not mask.is_floating_point():
        raise ValueError(f"a mask of {mask.dtype} is none: it holds fractions")
    if tuple(mask.shape) != (1, *latent_shape[1:]):
        raise ValueError(f"a mask {list(mask.shape)} does not fit latents {list(latent_shape)}")
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError(f"a mask lies in 0...1, not in {mask.min():g}...{mask.max():g}")
    if not mask.any():
        raise ValueError("nothing lies inside the mask")


def _require_levels(sigmas: Tensor) -> None:
    """Raise ValueError for what no sampling goes by: noise levels [K] are finite, 0 or above, and fall."""
    if sigmas.ndim != 1 or not sigmas.isfinite().all() or (sigmas < 0).any() or (sigmas.diff() > 0).any():
        raise ValueError(f"its noise levels are {sigmas.tolist()!s:.80}, and not numbers that fall to 0")


def _require_noise(noise: Tensor, mask: Tensor) -> None:
    """Raise ValueError for what is no noise around a mask."""
    if noise.shape != mask.shape or not noise.is_floating_point() or not noise.isfinite().all():
        raise ValueError(f"the noise {list(noise.shape)} around a mask {list(mask.shape)} is not one of it")


def _held(format: str, names: Container[str]) -> tuple[str, ...]:
    """The tensors of a file of this format, which has tensors of these names. Raises KeyError for an unknown
    format."""
    if format not in (FIRST_FORMAT, FORMAT, WINDOW_FORMAT, MASK_FORMAT):
        raise KeyError(format)
    window = format == WINDOW_FORMAT or format == MASK_FORMAT and "final" in names
    return (*PARTS, *(WINDOW_PARTS if window else ()), *(MASK_PARTS if format == MASK_FORMAT else ()))


def _place(sigmas: Tensor, schedule: Tensor) -> int:
    """Where in a schedule a part of it begins."""
    for first in (schedule == sigmas[0]).nonzero().flatten().tolist():
        if torch.equal(schedule[first : first + len(sigmas)], sigmas):
            return int(first)
    raise ValueError("the steps' noise levels are no part of the schedule")


def _checksums(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: checksum(tensor) for name, tensor in tensors.items()}


def _header_checksum(header: Mapping[str, Any]) -> str:
    """Like `checksum`, of what JSON keeps of a header."""
    return f"{zlib.crc32(json.dumps(json.loads(json.dumps(header)), sort_keys=True).encode()):08x}"


def _lazy(path: Path, name: str, part: Any, checksums: Sequence[str] | None) -> LazyTensor:
    """The tensor of this name in a file. `part` is the file's slice of it; only shape and dtype are read."""
    shape, dtype = torch.Size(part.get_shape()), part[:0].dtype
    if not dtype.is_floating_point:
        raise ValueError(
            f"{name} holds {str(dtype).removeprefix('torch.')}, and latents are floating-point numbers"
        )
    if checksums is not None and len(checksums) != shape[0]:
        raise ValueError(f"it has {len(checksums)} checksums for {shape[0]} steps of {name}")
    return LazyTensor(path, name, shape, dtype, None if checksums is None else tuple(checksums))
