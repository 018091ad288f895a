"""Files of models that judge pictures: in models/aesthetic, a folder that other packs use as well."""

from pathlib import Path

import folder_paths
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

FOLDER = "aesthetic"
TENSORS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")  # the last four are shown and refused, with words
folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def judges(*endings):
    """Names of the files that end so."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.lower().endswith(endings)]


def path_of(name):
    return Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def made_of(name, given, make):
    """What `make` makes of the tensors in a file, which the input `given` names. Raises ValueError for what
    is no .safetensors, or not what is wanted."""
    if not name.endswith(".safetensors"):
        old = Path(name).name
        new = Path(old).with_suffix(".safetensors")
        raise ValueError(
            f"{given}: {name} may run code when it is read. Convert it once, in its folder: "
            'python -c "import torch, safetensors.torch as s; '
            f"t = torch.load('{old}', 'cpu', weights_only=True); s.save_file(t.get('model', t), '{new}')\""
        )
    try:
        with torch.inference_mode(False):  # they will take part in a backward pass
            return make(load_file(path_of(name)))
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{given}: {name}: {error}") from error
