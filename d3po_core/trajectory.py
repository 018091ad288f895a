"""The recorded candidates of one prompt: every latent on the way from noise to image, and how it came about."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .transition import Ancestral

FORMAT = "d3po.trajectory/1"


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a safetensors file, read where it is indexed, by an int, a slice or a tuple of these.

    What it gives is an ordinary tensor of its own: the file is open during the reading only. torch's functions take it
    too, and read all of it; zeros_like reads nothing. Raises ValueError, naming the file, if it can no longer be read.
    """

    path: Path
    name: str
    shape: torch.Size
    dtype: torch.dtype

    @property
    def ndim(self):
        return len(self.shape)

    def __len__(self):
        return self.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        try:
            with safe_open(self.path, framework="pt") as file:
                return file.get_slice(self.name)[index].clone()  # a view would keep the file open
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path}: {self.name} cannot be read ({error})") from error

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.zeros_like:
            return torch.zeros(args[0].shape, **{"dtype": args[0].dtype, **(kwargs or {})})

        def read(value):
            if isinstance(value, (list, tuple)):
                return type(value)(map(read, value))
            return value[:] if isinstance(value, cls) else value

        return function(*read(args), **{name: read(value) for name, value in (kwargs or {}).items()})


@dataclass
class Trajectory:
    """N candidates that share their initial noise and differ by the noise of the steps.

    states   [T + 1, N, C, H, W] float32: x at sigmas[0] ... sigmas[T], in the model's latent space
    denoised [T, N, C, H, W] float32: the sampling policy's x0 at each state, guidance applied
    sigmas   [T + 1] float32, falling
    kernel   the transition between neighbouring states
    set_id   names the set: the same graph gives the same name on every machine
    model    fingerprint of the base model's weights
    policy   names the weights that sampled; where it is the reference's name, `denoised` is the reference's x0
    settings seed, cfg and what else describes the sampling; JSON values
    conditioning  whatever the host's denoiser needs besides x and sigma; opaque here and not saved

    states and denoised are LazyTensors where the trajectory was opened rather than loaded.
    """

    states: torch.Tensor | LazyTensor
    denoised: torch.Tensor | LazyTensor
    sigmas: torch.Tensor
    kernel: Ancestral
    set_id: str
    model: str
    policy: str
    settings: dict = field(default_factory=dict)
    conditioning: object = None

    def __post_init__(self):
        steps = len(self.sigmas) - 1
        if len(self.states) != steps + 1 or len(self.denoised) != steps:
            raise ValueError(f"{len(self.sigmas)} sigmas need {steps + 1} states and {steps} denoised latents, "
                             f"got {len(self.states)} and {len(self.denoised)}")
        if self.states.shape[1:] != self.denoised.shape[1:]:
            raise ValueError(f"states {list(self.states.shape)} and denoised {list(self.denoised.shape)} differ")

    @property
    def candidates(self):
        return self.states.shape[1]

    @property
    def actions(self):
        """Indices of the steps that are random, and so have a log-prob (std > 0)."""
        return [i for i in range(len(self.sigmas) - 1)
                if self.kernel.std(self.sigmas[i], self.sigmas[i + 1]) > 0]

    def save(self, path):
        """Write tensors and settings, without the conditioning, to a safetensors file. A contiguous tensor is written
        from where it lies."""
        header = {"format": FORMAT, "eta": self.kernel.eta, "set_id": self.set_id, "model": self.model,
                  "policy": self.policy, "settings": self.settings}
        tensors = {name: getattr(self, name)[:].contiguous() for name in ("states", "denoised", "sigmas")}
        save_file(tensors, path, metadata={"d3po": json.dumps(header)})

    @classmethod
    def load(cls, path, conditioning=None):
        """Read a file that `save` wrote. Raises ValueError, naming the file, for any other."""
        return cls._read(path, conditioning, lambda file, name: file.get_tensor(name))

    @classmethod
    def open(cls, path, conditioning=None):
        """As `load`, but states and denoised are read where they are indexed (LazyTensor). Keeps no file open."""
        def lazy(file, name):
            part = file.get_slice(name)
            return LazyTensor(Path(path), name, torch.Size(part.get_shape()), part[:0].dtype)

        return cls._read(path, conditioning, lazy)

    @classmethod
    def _read(cls, path, conditioning, read):
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["d3po"])
                if header["format"] != FORMAT:
                    raise KeyError(header["format"])
                for name, kind in {"set_id": str, "model": str, "policy": str, "settings": dict}.items():
                    if not isinstance(header[name], kind):
                        raise ValueError(f"its {name} is {header[name]!r:.80}")
                tensors = {name: read(file, name) for name in ("states", "denoised")}
                tensors["sigmas"] = file.get_tensor("sigmas").clone()
            return cls(**tensors, kernel=Ancestral(header["eta"]), conditioning=conditioning,
                       **{name: header[name] for name in ("set_id", "model", "policy", "settings")})
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not a trajectory file ({error})") from error
