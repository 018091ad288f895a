"""What a frozen denoiser makes of an image on its way: features to tell candidates apart by.

Blocks of a diffusion network know what is in an image and where (arXiv 2112.03126, 2306.03881). They need no
further model, and see the latents that the LoRA is trained on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, ModuleList, Sequential

from ..candidates.images import CleanCandidates
from ..candidates.ode import Denoise
from ..training.randomness import Device, generator_of

MOST_BLOCKS = 8  # evenly among all, from the first to the last
CELLS = 4  # a side, of the grid whose means tell where something is
LEVELS = 1 / 16, 1 / 8, 3 / 16, 1 / 4  # of the noise levels, from the least
SEES = 0.01  # what a block gives for two images differs by this, of its size, where it sees them
Outputs: TypeAlias = tuple[Tensor, ...]
T = TypeVar("T")


class Eye:
    """Sees candidates by what some blocks of a network give for them.

    network   as denoise runs it
    per_pass  how many candidates go through it together
    places    of the blocks, as another Eye on such a network has found them
    look      which of LEVELS it looks at, and with which noise

    Without places the first images that it sees say which blocks these are; it sees all others by the same.
    """

    def __init__(
        self,
        network: Module,
        device: Device = "cpu",
        per_pass: int = 4,
        places: Sequence[tuple[int, int]] = (),
        look: int = 0,
    ) -> None:
        self.network, self.device, self.per_pass = network, device, per_pass
        self.places, self.look = [*places], look

    def features(
        self, images: CleanCandidates, denoise: Denoise, latents: Tensor | None = None
    ) -> list[Tensor]:
        """Of N candidates, as parts [N, F] float32 on the processor; F differs from part to part.

        images are looked at with a little noise, the same for all, under denoise(x [B, C, H, W], sigma [B]).
        Each block has two parts: what is there, by each channel's mean and standard deviation, and where, by
        its means over the cells of a grid. latents [N, C, H, W] take the place of the images' own.

        Raises ValueError for a network in which no blocks are found, or features that are not finite.
        """
        latents = (images.latents[:] if latents is None else latents).to(self.device)
        with torch.no_grad():
            if not self.places:
                two = torch.cat([latents[:1], 0 * latents[:1]])
                self.places = telling(self._seen(images, denoise, two))
            if not self.places:
                raise ValueError(
                    "model: no blocks were found in its network, so there is nothing to see taste by"
                )
            parts = [self.parts(images, denoise, some) for some in latents.split(self.per_pass)]
        made = [torch.cat(of_block) for of_block in zip(*parts)]
        if not all(part.isfinite().all() for part in made):
            raise ValueError(
                "the network overflowed while it looked at the candidates. Run it in bf16 or fp32"
            )
        return made

    def parts(self, images: CleanCandidates, denoise: Denoise, latents: Tensor) -> list[Tensor]:
        """`features` of latents [n, C, H, W] in one pass, with gradients where these are on."""
        return summaries(self._seen(images, denoise, latents), self.places)

    def _seen(self, images: CleanCandidates, denoise: Denoise, latents: Tensor) -> dict[int, Outputs]:
        sigma = images.sigmas[int(LEVELS[self.look] * len(images.sigmas))]
        named = ("taste", self.look) if self.look else ("taste",)
        noise = torch.randn(1, *latents.shape[1:], generator=generator_of(*named)).to(latents)
        x = images.noised(latents, sigma, noise)
        with watched(self.network, len(x)) as outputs:
            denoise(x, sigma.to(x).expand(len(x)))
        return outputs


@contextmanager
def watched(network: Module, count: int) -> Iterator[dict[int, Outputs]]:
    """Inside the `with`, what each block gives when it is first called, by its place among the blocks: its
    maps or tokens of `count` images. A prompt of several regions runs them all in one call, or one after
    the other; it is the first that is seen."""
    seen: dict[int, Outputs] = {}

    def seeing(place: int) -> Callable[[Module, Any, Any], None]:
        def see(module: Module, inputs: Any, output: Any) -> None:
            several = output if isinstance(output, (tuple, list)) else (output,)
            outputs = tuple(each[:count] for each in several if isinstance(each, Tensor) and each.dim() >= 3)
            if outputs:
                seen.setdefault(place, outputs)

        return see

    hooks = [block.register_forward_hook(seeing(place)) for place, block in enumerate(blocks(network))]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def telling(seen: Mapping[int, Outputs]) -> list[tuple[int, int]]:
    """(block, output) of MOST_BLOCKS blocks, of what they give for two different images. Of several streams
    it is the one that differs most; blocks that see no image, but a text or the time, are left out."""
    found = []
    for place, outputs in seen.items():
        of_images = [i for i, output in enumerate(outputs) if len(output) == 2]
        changes = [difference(outputs[i]) for i in of_images]
        if changes and max(changes) > SEES:
            found.append((place, of_images[changes.index(max(changes))]))
    return evenly(found, MOST_BLOCKS)


def evenly(several: Sequence[T], most: int) -> list[T]:
    """At most so many of them, from the first to the last, evenly apart."""
    places = torch.linspace(0, len(several) - 1, min(most, len(several))).round().long().tolist()
    return [several[place] for place in places]


def difference(two: Tensor) -> float:
    """How much two outputs [2, ...] differ, by their size; infinitely where they are not finite."""
    one, other = two.float()
    change = (one - other).abs().mean() / two.float().abs().mean().clamp(min=1e-30)
    return float(change) if change.isfinite() else float("inf")


def blocks(network: Module) -> list[Module]:
    """The elements of the network's lists of modules; of elements that are sequences, their last ones."""
    lists = [child for child in network.children() if isinstance(child, (ModuleList, Sequential))]
    return [_last(element) for several in lists for element in several]


def _last(element: Module) -> Module:
    while isinstance(element, (Sequential, ModuleList)) and len(element):
        element = element[-1]
    return element


def summaries(seen: Mapping[int, Outputs], places: list[tuple[int, int]]) -> list[Tensor]:
    """The parts, [N, F] each, of these outputs [N, ...]."""
    return [part.cpu() for block, output in places for part in summary(seen[block][output].float())]


def summary(output: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts, [N, F] each, of a block's output: maps [N, C, H, W], also with a frame axis [N, C, T, H,
    W], or tokens [N, T, C]."""
    if output.dim() == 3:
        channels = output.transpose(1, 2)
        grid = torch.nn.functional.adaptive_avg_pool1d(channels, CELLS**2)
    else:
        channels = output.flatten(2)
        maps = output.mean(2) if output.dim() == 5 else output
        grid = torch.nn.functional.adaptive_avg_pool2d(maps, CELLS)
    return torch.cat([channels.mean(2), channels.std(2, correction=0)], 1), grid.flatten(1)
