"""Decoding by the host's VAE, with gradients."""

from contextlib import contextmanager


class Decoding:
    """A VAE beside a MODEL: `beside` is the MODEL with which the host loads it and further models, and
    `decode(latents)` gives images [n, H, W, 3] in 0...1, with gradients, of latents [n, C, H, W] in the
    model's own space."""

    def __init__(self, model, vae, further=()):
        self.vae, self.patcher, self.latents = vae, vae.patcher, model.model
        if self.patcher.is_dynamic():  # weights that come and go by page cannot be held for a backward pass
            self.patcher = self.patcher.clone(disable_dynamic=True, force_deepcopy=True)
        self.patchers = list(dict.fromkeys([self.patcher, *further]))
        self.beside = model.clone()
        self.beside.set_additional_models("d3po_decoding", self.patchers)

    def need(self, latents):
        """About how many bytes decoding these takes, by the host's own estimate, without gradients."""
        return int(self.vae.memory_used_decode(latents.shape, self.vae.vae_dtype))

    def decode(self, latents):
        latents = self.latents.process_latent_out(latents).to(self.patcher.load_device, self.vae.vae_dtype)
        images = self.patcher.model.decode(latents).float()
        # the host's is in place, and what the decoder gives may be needed for its gradient
        images = self.vae.process_output(images.clone()).movedim(1, -1)
        return images.flatten(0, -4)  # of a video VAE every picture is a clip of one


@contextmanager
def decoding(model, vae, further=()):
    """The Decoding of a VAE. Its weights and those of the further models get no gradients of their own
    meanwhile."""
    own = Decoding(model, vae, further)
    weights = {
        p: p.requires_grad
        for patcher in own.patchers
        for p in patcher.model.parameters()
        if not p.is_inference()
    }
    try:
        for parameter in weights:
            parameter.requires_grad_(False)
        yield own
    finally:
        for parameter, wanted in weights.items():
            parameter.requires_grad_(wanted)
