"""What a small value holds."""

import torch

from .common import Probe


class ProbeValue(Probe):
    """Numbers and texts as they are, IMAGEs and LATENTs as nested lists."""

    def look(self, value):
        if isinstance(value, dict):
            value = value["samples"]
        return value.tolist() if isinstance(value, torch.Tensor) else value
