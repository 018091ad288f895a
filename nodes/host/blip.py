"""ImageReward's and BLIP's networks in the host's memory."""

import comfy.model_management
import comfy.model_patcher
import torch

from ...d3po_core.candidates.blip import PIXEL_MEAN, PIXEL_STD, Blip
from .clip import TOGETHER, preprocessed, require_text


class Whole(comfy.model_patcher.ModelPatcher):
    """The host's handle of a network whose layers are not the host's own: it is on its device as a whole, or
    not at all."""

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        super().load(device_to, force_patch_weights=force_patch_weights, full_load=True)

    def partially_unload(self, *_, **__):
        return 0


class TextImageScores:
    """Scores of pictures for a text by a Blip, whose vocabulary is a file. `patcher` is the host's handle of
    it. Raises ValueError for another vocabulary."""

    def __init__(self, tensors, vocabulary):
        network = Blip.of(tensors)
        self.name, self.size, self.read = network.name, network.size, network.reader(vocabulary)
        self.patcher = Whole(
            network,
            comfy.model_management.get_torch_device(),
            comfy.model_management.text_encoder_offload_device(),
        )

    def __call__(self, images, text):
        """[N] on the network's device, of images [N, H, W, 3]. Gradients flow while a model is trained that
        it is held beside."""
        tokens = self.tokens(text)
        if not comfy.model_management.in_training:  # a load could drive out the model that is trained
            comfy.model_management.load_models_gpu([self.patcher])
        return torch.cat([self._scored(few, tokens) for few in images.split(TOGETHER)])

    def tokens(self, text):
        """Of a prompt's text. Raises ValueError for None."""
        require_text(text)
        return self.read(text)

    def _scored(self, images, tokens):
        pixels = preprocessed(images.to(self.patcher.load_device), self.size, PIXEL_MEAN, PIXEL_STD)
        return self.patcher.model(pixels, tokens)
