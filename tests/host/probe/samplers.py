"""The host's samplers on a model of a few lines, a recording gone through again as training does, and
noise."""

import comfy.model_sampling
import comfy.samplers
import torch

from .common import of_pack

CFG = 1.5


class Epsilon(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    pass


class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    pass


SCHEDULES = {Epsilon: [9.0, 4.0, 1.7, 0.6, 0.2, 0.0], Flow: [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]}


class Model:
    """What samplers ask of a model. It keeps the x that it is called with."""

    def __init__(self, kind):
        self.model_sampling, self.inner_model, self.model_patcher, self.calls = kind(), self, self, []

    def get_model_object(self, name):
        return getattr(self, name)

    def __call__(self, x, sigma, model_options, seed):
        self.calls.append(x.clone())
        level = sigma.view(-1, *[1] * (x.ndim - 1))
        cond, uncond = torch.tanh(x / (1 + level)), torch.sin(0.4 * x) / (1 + level)
        guided = uncond + CFG * (cond - uncond)
        for function in model_options.get("sampler_post_cfg_function", []):
            guided = function({"denoised": guided, "uncond_denoised": uncond, "sigma": sigma})
        return guided


def sampled(name, kind, x, sigmas, seed=0, noise=None, **options):
    """(final x, x at the beginning of each step, x of the calls of each step) of a sampler of the host.
    noise: a number in place of what it draws."""
    model, states, begins = Model(kind), [], []

    def begin(step):
        states.append(step["x"].clone())
        begins.append(len(model.calls) - 1)

    if noise is not None:
        options["noise_sampler"] = lambda *_: torch.full_like(x, noise)
    final = comfy.samplers.sampler_object(name).sampler_function(
        model, x.clone(), torch.tensor(sigmas), extra_args={"model_options": {}, "seed": seed},
        callback=begin, disable=True, **options)  # fmt: skip
    ends = [*begins[1:], len(model.calls)]
    return final, states, [model.calls[a:b] for a, b in zip(begins, ends)]


def way(name, kind):
    """How a sampler of the host steps: "deterministic", "earlier steps", "noise between", "two states" or
    "one Gaussian"."""
    sigmas = SCHEDULES[kind]
    x = sigmas[0] * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(7))
    final, _, calls = sampled(name, kind, x, sigmas)
    assert torch.equal(final, sampled(name, kind, x, sigmas)[0]) and final.isfinite().all()
    other, _, other_calls = sampled(name, kind, x, sigmas, seed=1)
    if torch.equal(final, other):
        return "deterministic"
    whole, states, _ = sampled(name, kind, x, sigmas, noise=0.0)
    later, _, _ = sampled(name, kind, states[2], sigmas[2:], noise=0.0)
    if not torch.allclose(whole, later, rtol=1e-4, atol=1e-5):
        return "earlier steps"
    if len(calls[0]) > 1:
        return "two states" if torch.equal(calls[0][1], other_calls[0][1]) else "noise between"
    return "one Gaussian"


def off(name, kind, eta):
    """How far the host's step is from the kernel's: [in the mean, in the deviation], as shares of the
    deviation, the largest of a schedule."""
    pack, found = of_pack("host").samplers, []
    sampler, generator = pack.RECORDABLE[name], torch.Generator().manual_seed(3)
    own = {"eta": eta} if sampler.with_eta else {}
    for sigma, sigma_next in zip(SCHEDULES[kind], SCHEDULES[kind][1:-1]):
        steps = torch.tensor([sigma, sigma_next, 0.0])
        kernel = (sampler.flow if kind is Flow else sampler.kernel)(eta, steps)
        x = (1 + sigma) * torch.randn(2, 4, 2, 2, generator=generator)
        middle, one = (sampled(name, kind, x, steps.tolist(), noise=z, **own)[1][1] for z in (0.0, 1.0))
        options = {"sampler_post_cfg_function": [pack.as_guidance(kernel, steps)]} if "pp" in name else {}
        x0 = Model(kind)(x, steps[:1].expand(2), options, 0)
        mean, std = kernel.mean(x, x0, *steps[:2]), kernel.std(*steps[:2])
        found.append([((middle - mean) / std).abs().max(), ((one - middle) / std - 1).abs().max()])
    return torch.tensor(found).amax(0).tolist()


def ways():
    names = comfy.samplers.SAMPLER_NAMES
    kinds = {"epsilon": Epsilon, "flow": Flow}
    recordable = of_pack("host").samplers.RECORDABLE
    return {
        "ways": {name: [way(name, kind) for kind in kinds.values()] for name in names},
        "off": {
            f"{name} of {told} models, eta {eta}": off(name, kind, eta)
            for name, sampler in recordable.items()
            for told, kind in kinds.items()
            for eta in ([1.0, 0.6] if sampler.with_eta else [1.0])
            if sampler.run and (sampler.flow if kind is Flow else sampler.kernel)
        },
    }


def replayed(t, model):
    """A recording through the trainer's denoiser: whether that gives the recorded x0 to the bit, and so the
    recorded means, and what the steps' noise is then like."""

    def work(session):
        denoise = session.denoiser(t)
        with torch.no_grad():
            return [
                denoise(x.to(session.device), sigma.to(session.device).expand(t.count)).cpu()
                for x, sigma in zip(t.states, t.sigmas[:-1])
            ]

    x0 = of_pack("host").train_inside(model, [t], work)
    noise = torch.stack(
        [
            (t.states[i + 1] - t.kernel.mean(t.states[i], x0[i], *t.sigmas[i : i + 2]))
            / t.kernel.std(*t.sigmas[i : i + 2])
            for i in t.actions
        ]
    )
    return {
        "kernel": t.kernel.name,
        "predicts": of_pack("host").samplers.prediction_of(model),
        "apart": max((ours - theirs).abs().max().item() for ours, theirs in zip(x0, t.denoised)),
        "last": (t.states[-1] - x0[-1]).abs().max().item(),
        "noise": [noise.mean().item(), noise.std().item(), noise.numel()],
    }


class SharedNoise:
    """A NOISE for the host's own custom sampling: one noise for the whole batch."""

    CATEGORY, RETURN_TYPES, FUNCTION = "test", ("NOISE",), "make"

    class Noise:
        def __init__(self, seed):
            self.seed = seed

        def generate_noise(self, latent):
            samples = latent["samples"]
            one = torch.randn(samples[:1].shape, generator=torch.manual_seed(self.seed), device="cpu")
            return one.repeat_interleave(len(samples), 0)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0, "max": 2**64 - 1})}}

    def make(self, seed):
        return (self.Noise(seed),)
