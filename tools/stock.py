"""Sampling with ComfyUI's own nodes only: Load Checkpoint, CLIP Text Encode, KSampler, VAE Decode."""

CHECKPOINT, FLOW_CHECKPOINT = "d3po-emoji.safetensors", "emoji-flow.safetensors"


def stock_prompt(
    texts,
    seeds,
    steps=10,
    cfg=2.0,
    sampler_name="euler_ancestral",
    scheduler="normal",
    lora=None,
    size=64,
    batch=1,
    flow=False,
):
    """An API prompt that makes `batch` images for each text and seed, by the flow model if `flow`. `lora`: a
    name in Load LoRA's list."""
    checkpoint = FLOW_CHECKPOINT if flow else CHECKPOINT
    nodes = {
        "loader": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "latent": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": size, "height": size, "batch_size": batch},
        },
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": ""}},
    }
    model = ["loader", 0]
    if flow:
        nodes["flow"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": model, "shift": 1.0}}
        model = ["flow", 0]
    if lora:
        nodes["lora"] = {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": model, "lora_name": lora, "strength_model": 1.0},
        }
        model = ["lora", 0]
    for i, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        nodes |= {
            f"text{i}": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": text}},
            f"sample{i}": {
                "class_type": "KSampler",
                "inputs": {
                    "model": model,
                    "seed": seed,
                    "steps": steps,
                    "cfg": cfg,
                    "sampler_name": sampler_name,
                    "scheduler": scheduler,
                    "positive": [f"text{i}", 0],
                    "negative": ["negative", 0],
                    "latent_image": ["latent", 0],
                    "denoise": 1.0,
                },
            },
            f"decode{i}": {
                "class_type": "VAEDecode",
                "inputs": {"samples": [f"sample{i}", 0], "vae": ["loader", 2]},
            },
            f"image{i}": {"class_type": "PreviewImage", "inputs": {"images": [f"decode{i}", 0]}},
        }
    return nodes


def stock_images(host, texts, seeds, **settings):
    """Run `stock_prompt` on a host: the images in the order of the texts, and of a text's batch, PIL."""
    outputs = host.run(stock_prompt(texts, seeds, **settings), timeout=1800)["outputs"]
    return [host.image(image) for i in range(len(texts)) for image in outputs[f"image{i}"]["images"]]
