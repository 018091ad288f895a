"""The emoji model in little, for what does not ask what is learned."""

import nodes as host_nodes

from .families import UNET, model_of

WIDE = 768  # what the emoji checkpoint's CLIP gives


class SmallModel:
    """What the emoji checkpoint's loader gives, but for a UNet a tenth as wide, of random weights, and a CLIP
    of two layers."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "load", ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        _, clip, vae = host_nodes.CheckpointLoaderSimple().load_checkpoint("d3po-emoji.safetensors")
        del clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[2:]
        config = UNET | dict(
            context_dim=WIDE, num_heads=8, num_head_channels=-1, use_linear_in_transformer=False
        )
        return model_of("SD15", config), clip, vae
