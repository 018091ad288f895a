"""The gradient of one update, and whether it is another's."""

import torch

from d3po_core.trainer import Trainer


def gradients(adapter, settings, batch, **options):
    """(gradient of each weight, metrics) of one update."""
    trainer = Trainer(adapter, settings, **options)
    metrics = trainer.update(batch)
    return [parameter.grad.clone() for parameter in adapter.parameters()], metrics


def assert_same(ours, theirs, tolerance=1e-7):
    scale = torch.cat([g.flatten() for g in theirs]).abs().max().item()
    assert scale > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


def overall(metrics):
    """Metrics without those of one quarter of the noise schedule, which an update may have or not."""
    return {name: value for name, value in metrics.items() if "noise quarter" not in name}
