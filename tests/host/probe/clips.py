"""Small CLIPs through the host's own classes, and what a scorer makes of pictures while a model learns."""

import json

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import folder_paths
import torch
from safetensors.torch import load_file

from .common import Probe, of_pack


class SmallCLIP:
    """A CLIP's two halves in transformers' layout, from files in models/text_encoders.

    The host's loaders know CLIPs by their number of layers, and take the rest of the shape from that: here
    the shapes are given."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "load", ("CLIP_VISION", "CLIP")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {name: ("STRING", {}) for name in ("pictures", "texts", "config")}}

    def load(self, pictures, texts, config):
        config = json.loads(config)
        pictures, texts = (
            folder_paths.get_full_path_or_raise("text_encoders", name) for name in (pictures, texts)
        )
        vision = comfy.clip_vision.ClipVisionModel(config["vision"])
        missing, _ = vision.load_sd(load_file(pictures))
        assert not missing, missing
        return vision, comfy.sd.load_clip([texts], model_options={"model_config": config["text"]})


class ProbeScorer:
    """Scores of pictures and their gradient, as within a train step that holds the scorer's models."""

    CATEGORY, OUTPUT_NODE, RETURN_TYPES, FUNCTION = "test", True, (), "show"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"scorer": ("D3PO_SCORER",), "pixels": ("STRING", {}), "prompt": ("STRING", {})}}

    def show(self, scorer, pixels, prompt):
        images = torch.tensor(json.loads(pixels))
        found = {"scores": scorer(images, prompt).tolist(), "name": scorer.name}
        with torch.inference_mode(False):
            models = scorer.prepare([prompt])
            comfy.model_management.load_models_gpu(models)
            for patcher in models:
                of_pack("host").session._own_weights(patcher.model)
            images = images.clone().requires_grad_()
            comfy.model_management.in_training = True
            try:
                (gradient,) = torch.autograd.grad(scorer(images, prompt).sum(), images)
            finally:
                comfy.model_management.in_training = False
        found |= {"gradient": gradient.tolist(), "models": len(models)}
        return {"ui": {"text": [json.dumps(found)]}}


class ProbeTwin(Probe):
    """Whether the network that takes the place of a paged one makes the same of a picture, and is another."""

    KIND = "CLIP_VISION"

    def look(self, vision):
        own = of_pack("host").clip.twin(vision)
        pixels = torch.randn(1, 3, vision.image_size, vision.image_size)
        same = torch.equal(own.model(pixel_values=pixels)[2], vision.model(pixel_values=pixels)[2])
        shared = set(own.model.parameters()) & set(vision.model.parameters())
        return {"same": same, "shared": len(shared), "paged": own.is_dynamic()}
