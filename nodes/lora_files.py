"""LoRA files: what other programs look for in one, and writing it."""

import json
from contextlib import suppress
from datetime import datetime, timezone

from ..d3po_core.files import make_folder, replace_whole
from ..d3po_core.runs import files as run_files
from ..d3po_core.training.lora_files import file_alpha, load_lora, save_lora

# the host's name of a model family -> ModelSpec's
ARCHITECTURES = {
    "SD15": "stable-diffusion-v1",
    "SD20": "stable-diffusion-v2-512",
    "SD21": "stable-diffusion-v2-768-v",
    "SDXL": "stable-diffusion-xl-v1-base",
}
# what files say of the kinds that LyCORIS makes, and kohya's own programs do not
LYCORIS = {
    "DoRA": {"algo": "locon", "dora_wd": True, "wd_on_output": True},
    "LoHa": {"algo": "loha"},
    "LoKr": {"algo": "lokr"},
}


def write_lora(path, tensors, described):
    with run_files.named(path):
        make_folder(path.parent)
        replace_whole(path, lambda partial: save_lora(tensors, partial, described))


def remove_lora(path, run):
    """Remove a run's LoRA file; one that is not this run's stays."""
    with suppress(ValueError):
        _, described = load_lora(path)
        if "d3po" in described and described.get("modelspec.title") == run:
            path.unlink()


def metadata(training, title):
    """What other programs look for in a LoRA file, and the training record."""
    settings, family = training.settings, training.settings["architecture"]
    lycoris = LYCORIS.get(settings["adapter"])
    module = (
        {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(lycoris)}
        if lycoris
        else {"ss_network_module": "networks.lora"}
    )
    alpha = file_alpha(settings["alpha"], settings["rank"], settings["adapter"])
    now = datetime.now(timezone.utc).replace(microsecond=0).isoformat()
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{ARCHITECTURES.get(family, family)}/lora",
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        "modelspec.title": title,
        "modelspec.date": now,
        **module,
        "ss_network_dim": str(settings["rank"]),
        "ss_network_alpha": str(alpha),
        "ss_learning_rate": str(settings["learning_rate"]),
        "ss_steps": str(training.step),
        "ss_training_comment": "D3PO (arXiv 2311.13231)",
        "ss_seed": str(settings["seed"]),
        "d3po": json.dumps({"settings": settings, "step": training.step, "model": training.model}),
    }
