"""What a denoiser would predict if pictures that are liked more were more probable.

Preference tuning with a KL to the reference p looks for the policy p(x0) exp(strength r(x0)) (arXiv
2305.18290, equation 4), r being how much a picture is liked. By Tweedie's formula the denoiser of
x = a x0 + sigma noise is D(x) = (x + sigma^2 grad log p(x)) / a. Tilting adds log E[exp(strength r) | x] to
log p(x), to first order strength E[r | x], and E[r | x] is about r(D(x)): so to D(x) it adds

    strength sigma^2 / a  d r(D(x)) / d x.

The same gradient leads sampling in classifier guidance (2105.05233) and universal guidance (2302.07121). A
policy that has learned it needs neither r nor the gradient any more. Unlike pairs it has no noise of what
candidates differ by besides.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..candidates.ode import Denoise

STRENGTH = 2.0  # standard deviations among candidates of a prompt, which r counts in: liked by so many more
LEAST = 0.02  # of a: where a flow model's x is noise alone, its x0 is the same whatever x is


def shift(
    denoise: Denoise,
    x: Tensor,
    sigma: Tensor,
    share: Tensor,
    x0: Tensor,
    gradient: Callable[[Tensor], Tensor],
) -> Tensor:
    """What tilting adds to x0 = denoise(x, sigma), [n, C, H, W] without gradients; share is a, 0-d.

    gradient(x0) is r's. It goes through the denoiser with norm 1 for each image, so that it is not lost in
    half precision.
    """
    slope = gradient(x0)
    size = slope.flatten(1).norm(dim=1).clamp(min=torch.finfo(slope.dtype).tiny)[:, None, None, None]
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        made = denoise(x, sigma.to(x).expand(len(x)))
        (through,) = torch.autograd.grad(made, x, (slope / size).to(made))
    sigma, share = sigma.to(x), share.to(x).clamp(min=LEAST)
    added: Tensor = STRENGTH * sigma**2 / share * size.to(x) * through
    return added
