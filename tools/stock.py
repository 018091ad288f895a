"""Sampling with ComfyUI's own nodes only: Load Checkpoint, CLIP Text Encode, KSampler, VAE Decode."""

from tools.workflow import node

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
    """An API prompt that makes `batch` images for each text and seed.

    lora  a name in Load LoRA's list
    flow  by the flow model
    """
    nodes = {
        "loader": node("CheckpointLoaderSimple", ckpt_name=FLOW_CHECKPOINT if flow else CHECKPOINT),
        "latent": node("EmptyLatentImage", width=size, height=size, batch_size=batch),
        "negative": node("CLIPTextEncode", clip=["loader", 1], text=""),
    }
    model = ["loader", 0]
    if flow:
        nodes["flow"] = node("ModelSamplingSD3", model=model, shift=1.0)
        model = ["flow", 0]
    if lora:
        nodes["lora"] = node("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)
        model = ["lora", 0]
    sampling = dict(steps=steps, cfg=cfg, sampler_name=sampler_name, scheduler=scheduler, denoise=1.0)
    for i, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        wires = dict(positive=[f"text{i}", 0], negative=["negative", 0], latent_image=["latent", 0])
        nodes |= {
            f"text{i}": node("CLIPTextEncode", clip=["loader", 1], text=text),
            f"sample{i}": node("KSampler", model=model, seed=seed, **sampling, **wires),
            f"decode{i}": node("VAEDecode", samples=[f"sample{i}", 0], vae=["loader", 2]),
            f"image{i}": node("PreviewImage", images=[f"decode{i}", 0]),
        }
    return nodes


def stock_images(host, texts, seeds, **settings):
    """Run `stock_prompt` on a host: the images in the order of the texts, and of a text's batch, PIL."""
    outputs = host.run(stock_prompt(texts, seeds, **settings), timeout=1800)["outputs"]
    return [host.image(image) for i in range(len(texts)) for image in outputs[f"image{i}"]["images"]]
