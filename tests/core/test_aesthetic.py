"""The aesthetic head against torch's own layers."""

import pytest
import torch
from torch import nn

from d3po_core.candidates.aesthetic import AestheticHead


def network():
    torch.manual_seed(0)
    inner = nn.Sequential(
        nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
        nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1))  # fmt: skip
    return nn.ModuleDict({"layers": inner}).eval()


def test_it_is_the_predictors_own_network_with_its_gradient():
    whole, embeddings = network(), torch.randn(3, 768, requires_grad=True)
    found, expected = AestheticHead.of(whole.state_dict())(embeddings), whole["layers"](embeddings)[:, 0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(each.sum(), embeddings)[0] for each in (found, expected))
    )


@pytest.mark.parametrize("change", [
    {"layers.7.bias": None}, {"layers.1.weight": torch.ones(1)}, {"layers.0.weight": torch.ones(1024, 1024)},
])  # fmt: skip
def test_another_file_is_refused(change):
    tensors = {name: own for name, own in (network().state_dict() | change).items() if own is not None}
    with pytest.raises(ValueError, match="this is not the improved aesthetic predictor"):
        AestheticHead.of(tensors)
