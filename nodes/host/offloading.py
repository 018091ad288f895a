"""A model's weights while it trains on a card that they fill: as many of them as must stay in main memory.

The host leaves free what sampling takes, and a backward pass takes more. How much is known once the network
is at work; then the model is loaded again, and less of it.
"""

from contextlib import contextmanager

import comfy.model_management
from torch import distributed

SHARE = 4  # a quarter of the weights makes room where it is not known how much is lacking


class Lacking(RuntimeError):
    """So many bytes of the device's memory are lacking."""

    def __init__(self, size):
        super().__init__(f"{size} bytes are lacking")
        self.size = size


class Offloading:
    """Runs work on a MODEL, again with more of its weights in main memory where memory does not suffice."""

    def __init__(self, model):
        self.model, self.reserved = model, 0

    @property
    def possible(self):
        """Whether weights are left that could make room. Of several processes none may begin anew alone."""
        elsewhere = self.model.offload_device != self.model.load_device
        together = distributed.is_available() and distributed.is_initialized()
        return elsewhere and not together and self.reserved < self.model.model_size()

    def require(self, size, free):
        """Raises Lacking where less is free, and weights could make room."""
        if free < size and self.possible:
            raise Lacking(size - free)

    def run(self, work):
        """The result of work(). Raises what it raises once nothing is left that could make room."""
        while True:
            try:
                kept = comfy.model_management.EXTRA_RESERVED_VRAM  # what the host leaves free as it loads
                with managing(EXTRA_RESERVED_VRAM=kept + self.reserved):
                    return work()
            except (Lacking, comfy.model_management.OOM_EXCEPTION) as error:
                if not self.possible:
                    raise
                self.reserved += getattr(error, "size", self.model.model_size() // SHARE)
            comfy.model_management.unload_all_models()  # what raised has let go of its tensors only here


@contextmanager
def managing(**ours):
    """The host's memory management with some of its variables otherwise."""
    before = {name: getattr(comfy.model_management, name) for name in ours}
    vars(comfy.model_management).update(ours)
    try:
        yield
    finally:
        vars(comfy.model_management).update(before)
