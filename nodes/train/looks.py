"""Pictures that a train step shows while it learns: the same noise by the reference and by the LoRA."""

import io
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import comfy.model_management
import folder_paths
import torch
from PIL import Image

from ...d3po_core.runs.looks import Look
from ...d3po_core.taste.movement import Samples, to_sample, varied
from ...d3po_core.training.memory import empty_cache
from .. import host
from ..host.decoding import Decoding
from .live import LEARNING, LOOKING

MOST = 4  # pictures
LONGEST = 256  # pixels of a picture's longer side
SELDOM = 10  # times what a look took, until the next
NO_MEMORY = (
    "There was not the memory to show pictures on the node: the VAE needs more than training leaves. Nothing "
    "else is missing"
)


class Wanted(NamedTuple):
    """A VAE beside the MODEL that is trained, and {set's name: its prompt's text}, where that is known."""

    decoding: Decoding
    texts: dict


class Shown(NamedTuple):
    """A picture, small, and the temporary file that the page shows it by."""

    image: Image.Image
    file: dict


@contextmanager
def shown_by(model, vae, texts):
    """(the MODEL to train, Wanted; None without a VAE)."""
    if vae is None:
        yield model, None
        return
    with host.decoding(model, vae) as decoding:
        yield decoding.beside, Wanted(decoding, texts)


class Looks:
    """What becomes of a few pictures, told by a Live. Nothing that is learned depends on it.

    With several processes there is the last look alone, as all would have to agree on when one is due.
    """

    def __init__(self, session, trainer, views, wanted, live):
        self.session, self.trainer, self.live, self.decoding = session, trainer, live, wanted.decoding
        self.alone = trainer.ranks.count == 1
        started = to_sample(views)
        names = [view.candidates.set_id for view, _ in started]
        self.places = varied([wanted.texts.get(name, name) for name in names], len(started[0][1]), MOST)
        self.started = [(started[i][0], started[i][1][k : k + 1]) for i, k in self.places]
        self.prompts = [wanted.texts.get(names[i], "") for i, _ in self.places]
        self.before, self.now, self.samples, self.took, self.ended = [], [], None, 0.0, 0.0
        self.last = None  # what the final LoRA makes of them, as a run keeps it

    def begin(self):
        """Show the reference's pictures, before anything is learned."""
        if self.alone:
            self.live.tell(LOOKING)
            self._look(LOOKING, self._sampled)

    def when_due(self):
        """Show what the LoRA makes of them, once training has gone on long enough since the last look."""
        if self.samples and time.monotonic() - self.ended >= SELDOM * self.took:
            self._look(LEARNING, lambda: (self.samples.before, self.samples.now()))

    def end(self, pictures):
        """Show what the final LoRA makes of them: lines to tell. pictures are of all views, the latest by
        that LoRA; None where none were sampled."""

        def last():
            if pictures:
                return [
                    [latents[i][k : k + 1] for i, k in self.places]
                    for latents in (pictures.before, pictures.latest)
                ]
            samples = self.samples or Samples(self.trainer, self.started)
            return samples.before, samples.now()

        if not self._look(LOOKING, last):
            return [NO_MEMORY]
        self.last = Look(*(tuple(map(as_png, side)) for side in (self.before, self.now)), tuple(self.prompts))
        return []

    def _sampled(self):
        self.samples = Samples(self.trainer, self.started)
        return self.samples.before, []

    def _look(self, stage, sampled):
        """Tell of the pictures of what sampled() gives, latents before and now; False where memory does not
        suffice, and then only the end looks again."""
        began = time.monotonic()
        try:
            before, now = sampled()
            self.before = self.before or self._shown(before)
            outdated, self.now = self.now, self._shown(now)
        except comfy.model_management.OOM_EXCEPTION:
            if not self.alone:  # the others wait for this one
                raise
            self.samples = None
        else:
            before, now = ([shown.file for shown in side] for side in (self.before, self.now))
            self.live.pictures = {"before": before, "now": now, "prompts": self.prompts}
            self.live.tell(stage)
            forget(outdated)
            self.ended = time.monotonic()
            self.took = self.ended - began
            return True
        empty_cache(self.session.device)  # not before the error is gone: it holds what was being made
        return False

    def _shown(self, latents):
        return [as_shown(self._decoded(latent)) for latent in latents]

    @torch.no_grad()
    def _decoded(self, latent):
        """A picture [H, W, 3] of a latent [1, C, H, W]; of a clip its first one."""
        self.session.room(self.decoding.need(latent))
        try:
            return self.decoding.decode(latent)[0]
        except comfy.model_management.OOM_EXCEPTION:
            raise
        except RuntimeError as error:
            raise ValueError(
                "vae: it cannot decode what the model wired to 'model' makes. Wire the VAE that belongs to "
                f"this model, or none ({error})"
            ) from error


def as_shown(picture):
    """A picture [H, W, 3] as Shown."""
    pixels = (255 * picture[..., :3].nan_to_num().clamp(0, 1)).round().to(torch.uint8).cpu().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST, LONGEST))
    folder, name = Path(folder_paths.get_temp_directory()), f"d3po_{uuid4().hex}.jpg"
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, quality=95, subsampling=0)
    return Shown(image, {"filename": name, "subfolder": "", "type": "temp"})


def as_png(shown):
    """The bytes of a PNG file of what is Shown."""
    content = io.BytesIO()
    shown.image.save(content, "PNG")
    return content.getvalue()


def forget(pictures):
    """Remove what no page is told of any more; what cannot be removed now goes when the host starts again."""
    for shown in pictures:
        with suppress(OSError):
            Path(folder_paths.get_temp_directory(), shown.file["filename"]).unlink()
