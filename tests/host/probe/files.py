"""The pack's names of graphs that load files, which are written over, renamed and taken away."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import folder_paths

CHECKPOINT = "d3po-emoji.safetensors"


def of(set_name, class_type, loaded="", **inputs):
    """The name of a graph of one node, with a name of the model that is loaded."""
    graph = SimpleNamespace(get_node=lambda _: {"class_type": class_type, "inputs": inputs})
    return set_name(graph, "1", base=lambda: loaded)


def seconds_of(set_name):
    """Seconds of processor time to name a graph with the emoji checkpoint, the first time and once more."""
    taken = []
    for _ in range(2):
        began = time.thread_time()
        of(set_name, "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
        taken.append(time.thread_time() - began)
    return taken


def files(set_name):
    loras = Path(folder_paths.get_folder_paths("loras")[0])
    outputs, inputs = Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory())

    def of_lora(*parts):
        return of(set_name, "LoraLoaderModelOnly", lora_name=os.path.join(*parts), strength_model=1.0)

    def image(name):
        return of(set_name, "LoadImage", image=name)

    write(loras / "a.safetensors", b"one")
    first = of_lora("a.safetensors")
    write(loras / "deep" / "b.safetensors", b"one")
    same = of_lora("deep", "b.safetensors")
    write(loras / "a.safetensors", b"two")
    over = of_lora("a.safetensors")
    write(loras / "a.safetensors", b"one")
    back = of_lora("a.safetensors")
    (loras / "a.safetensors").unlink()
    gone, elsewhere = of_lora("a.safetensors"), of_lora("c.safetensors")

    write(inputs / "p.png", b"picture")
    write(outputs / "q.png", b"picture")
    write(outputs / "r.png", b"another")
    pictures = [image(name) for name in ("p.png", "q.png [output]", "r.png [output]")]
    latents = write(inputs / "l.latent", b"latent")
    latent = [of(set_name, "LoadLatent", latent="l.latent")]
    write(latents, b"others")
    latent.append(of(set_name, "LoadLatent", latent="l.latent"))

    names = large_file(loras / "large.safetensors", of_lora)
    checkpoints = written_over(set_name)
    for path in (
        loras / "deep" / "b.safetensors",
        inputs / "p.png",
        outputs / "q.png",
        outputs / "r.png",
        latents,
    ):
        path.unlink()
    return {
        "lora written over": first != over, "lora renamed": first == same, "lora written back": first == back,
        "gone by name": len({gone, elsewhere, first}) == 3,
        "pictures": pictures[0] == pictures[1] != pictures[2],
        "large": names[0] != names[1] == names[2], "seconds": seconds_of(set_name),
        "latents": latent[0] != latent[1],
        **read_otherwise(set_name, inputs),
        "kept while it is loaded": checkpoints[0] == checkpoints[1] != checkpoints[2] != checkpoints[3],
        "listed": listed_for(set_name),
    }  # fmt: skip


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(next_time(), next_time()))
    return path


def read_otherwise(set_name, inputs):
    """Whether a picture that is written over changes the names of what reads it by other ways than a list."""
    picture, names = inputs / "several" / "x.png", []
    elsewhere = Path(folder_paths.get_temp_directory()) / "x.png"
    for content in (b"picture", b"another"):
        write(picture, content)
        write(elsewhere, content)
        names.append(
            {
                "picked of outputs": of(set_name, "LoadImageOutput", image="several/x.png"),
                "painted": of(set_name, "Painter", mask="several/x.png", width=64, height=64),
                "by its path": of(set_name, "PrimitiveString", value=str(elsewhere)),
                "in a folder": of(set_name, "LoadImageDataSetFromFolder", folder="several"),
            }
        )
    picture.unlink()
    return {way: name != names[1][way] for way, name in names[0].items()}


def large_file(path, name_of):
    """The names for a LoRA of 200 MB: as it is, then twice with one byte near its end changed."""
    with open(path, "wb") as file:
        file.truncate(200 * 2**20)
    os.utime(path, ns=(next_time(), next_time()))
    names = [name_of(path.name)]
    with open(path, "r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"x")
    os.utime(path, ns=(next_time(), next_time()))
    names += [name_of(path.name) for _ in range(2)]
    path.unlink()
    return names


def written_over(set_name):
    """The names for a checkpoint of two models that are loaded, before it is written over and after."""
    path, names = Path(folder_paths.get_folder_paths("checkpoints")[0]) / "over.safetensors", []
    for content in (b"one", b"two"):
        write(path, content)
        names += [
            of(set_name, "CheckpointLoaderSimple", loaded, ckpt_name=path.name)
            for loaded in ("former", "new")
        ]
    path.unlink()
    return names


def listed_for(set_name):
    """The host's folders that are looked through to name a graph with a file and one with another choice."""
    listed, list_ = [], folder_paths.get_filename_list
    folder_paths.get_filename_list = lambda category: listed.append(category) or list_(category)
    try:
        of(set_name, "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
        of(set_name, "KSampler", sampler_name="euler", scheduler="karras")
    finally:
        folder_paths.get_filename_list = list_
    return sorted(set(listed))


_times = iter(range(10**18, 2 * 10**18, 10**9))


def next_time():
    """In ns, each another second: some file systems keep no finer times."""
    return next(_times)
