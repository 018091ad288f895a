"""A model in little, for what does not ask what is learned."""

import nodes as host_nodes


class SmallModel:
    """What a checkpoint loader gives: the flow model of random weights, a fiftieth of the emoji model's work,
    with its VAE, and the emoji checkpoint's CLIP."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "load", ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        (model,) = host_nodes.UNETLoader().load_unet("flow.safetensors", "default")
        _, clip, _ = host_nodes.CheckpointLoaderSimple().load_checkpoint("d3po-emoji.safetensors")
        (vae,) = host_nodes.VAELoader().load_vae("flow.safetensors")
        return model, clip, vae
