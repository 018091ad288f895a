"""The host's CLIP: embeddings of pictures, with gradients, and of texts."""

from contextlib import ExitStack

import comfy.clip_model
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
import torch.nn.functional as F
from safetensors import safe_open

TOGETHER = 8  # pictures


class ImageEncoder:
    """Embeddings of pictures by a CLIP_VISION. `patcher` is the host's handle of it, `width` theirs.

    Raises ValueError for one that is not CLIP's, or has no projection.
    """

    def __init__(self, vision):
        projection = getattr(vision.model, "visual_projection", None)
        if vision.model_type != "clip_vision_model" or not _is_known(projection):
            raise ValueError(
                "clip_vision: this is not CLIP's image encoder with its projection. Load that of a whole "
                "CLIP, such as OpenAI's ViT-L/14"
            )
        self.patcher = _held_whole(vision)
        self.size, self.mean, self.std = vision.image_size, vision.image_mean, vision.image_std
        self.width = len(projection.weight)

    def __call__(self, images):
        """[N, width] of length 1 on the encoder's device, of images [N, H, W, 3]. Gradients flow while a
        model is trained that it is held beside."""
        if not comfy.model_management.in_training:  # a load could drive out the model that is trained
            comfy.model_management.load_models_gpu([self.patcher])
        with ExitStack() as stack:
            for module in self.patcher.model.modules() if torch.is_grad_enabled() else ():
                if isinstance(module, torch.nn.LayerNorm):
                    stack.callback(module.register_forward_pre_hook(_given_copies).remove)
            return torch.cat([self._embedded(few) for few in images.split(TOGETHER)])

    def _embedded(self, images):
        pixels = preprocessed(images.to(self.patcher.load_device), self.size, self.mean, self.std)
        return F.normalize(self.patcher.model(pixel_values=pixels)[2], dim=-1)


class TextEncoder:
    """Embeddings of texts by a CLIP.

    Raises ValueError for one that has no text model of CLIP's with its projection, or several.
    """

    def __init__(self, clip):
        models = [
            module
            for module in clip.cond_stage_model.modules()
            if isinstance(module, comfy.clip_model.CLIPTextModel)
        ]
        if len(models) != 1:
            raise ValueError(
                f"clip: {len(models)} text models of CLIP's are in this. Load the one that belongs to "
                "clip_vision, and it alone, with Load CLIP"
            )
        self.clip, self.projection, self.known = clip, models[0].text_projection, {}
        if not _is_known(self.projection) or _read_without_projection(clip):
            raise ValueError(
                "clip: this text model came without its projection, as that of SD1.5's checkpoints does, so "
                "that its texts cannot be compared with pictures. Load the text model of a whole CLIP with "
                "Load CLIP"
            )
        self.width = len(self.projection.weight)

    def __call__(self, text):
        """[width] of length 1; known by heart from the second time on. Raises ValueError for None."""
        require_text(text)
        if text not in self.known:
            # the host leaves out the projection where it would not be used in sampling
            _, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled="unprojected")
            with torch.no_grad():
                projected = F.linear(pooled.float(), self.projection.weight.to(pooled.device).float())
            with torch.inference_mode(False):  # it will take part in a backward pass
                self.known[text] = F.normalize(projected.clone()[0], dim=0)
        return self.known[text]


def require_text(text):
    if text is None:
        raise ValueError(
            "it compares pictures with their prompt, whose text is not known here. Wire D3PO Prompts' "
            "prompt to this node's input prompt"
        )


def preprocessed(images, size, mean, std):
    """[N, 3, size, size] of images [N, H, W, 3]: the middle square, as the host's clip_preprocess has it but
    not rounded to 255 levels, which would take the gradient."""
    pixels = images[..., :3].movedim(-1, 1).float()
    height, width = pixels.shape[2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        height, width = round(scale * height), round(scale * width)
        pixels = F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
        top, left = (height - size) // 2, (width - size) // 2
        pixels = pixels[:, :, top : top + size, left : left + size]
    mean, std = (torch.tensor(each, device=pixels.device)[:, None, None] for each in (mean, std))
    return (pixels.clamp(0, 1) - mean) / std


def _held_whole(vision):
    """The host's handle of a CLIP_VISION's weights; where they come and go by page, which no backward pass
    can hold, that of a network of its own which begins with the same."""
    patcher = vision.patcher
    if not patcher.is_dynamic():
        return patcher
    return twin(vision)


def twin(vision):
    """A handle of a network of its own with a CLIP_VISION's weights."""
    patcher, operations = vision.patcher, comfy.ops.manual_cast
    model = type(vision.model)(vision.config, vision.dtype, patcher.offload_device, operations).eval()
    model.load_state_dict(vision.get_sd(), assign=True)
    return comfy.model_patcher.ModelPatcher(model, patcher.load_device, patcher.offload_device)


def _given_copies(norm, given):
    """The host's layers write over what their norms were given, which these need for a gradient."""
    return (given[0].clone(), *given[1:])


def _is_known(projection):
    """Whether a projection's weights are any. Where a file has none the host may leave zeros, or whatever
    lies in memory."""
    if not isinstance(projection, torch.nn.Module):
        return False
    weight = projection.weight.float()
    return bool(weight.any() and weight.isfinite().all())


def _read_without_projection(clip):
    """Whether the files that the host read a CLIP from are known to have no projection."""
    origin = clip.patcher.cached_patcher_init
    paths = [] if origin is None else origin[1][0]
    paths = [paths] if isinstance(paths, str) else paths
    if not paths or not all(path.endswith((".safetensors", ".sft")) for path in paths):
        return False
    names = set()
    for path in paths:
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return not any("text_projection" in name for name in names)
