"""What a train pass of full-size models keeps in memory, without a graphics card.

ComfyUI's own networks are built at their full size with tensors that have shapes and no content, a LoRA is
put into them as in training, and everything that autograd keeps of a pass is counted. What it leaves out is
the allocator's and the kernels' own need, for which a quarter is added.
"""

import sys
from contextlib import nullcontext
from functools import partial

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from d3po_core.training.adapter import Adapter
from d3po_core.training.checkpointing import Checkpointing, blocks
from d3po_core.training.memory import SPARE, needed
from tools.host import ROOT, comfyui_folder
from tools.launch_host import mend_torchaudio, mend_torchvision, torch_is_cpu_build
from tools.measured import collected

DOC = ROOT / "docs" / "memory.md"
BEGIN, END = "<!-- measured: python dev.py bench memory --write -->", "<!-- end of memory -->"
GIB, TERA = 2**30, 1e12
RANK, TARGETS = 16, "attention"
CARDS = (8, 12, 16, 24, 32, 48, 80)  # GB that are sold
OF_SYSTEM = 1.0  # GiB that CUDA and the desktop take
PER_WEIGHT = 16  # bytes for each of the LoRA's: itself, its gradient, AdamW's two moments
WEIGHTS = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}

SD = dict(image_size=32, in_channels=4, out_channels=4, model_channels=320, use_spatial_transformer=True,
          legacy=False)  # fmt: skip
SD15 = SD | dict(
    num_res_blocks=[2] * 4, channel_mult=[1, 2, 4, 4], transformer_depth=[1] * 6 + [0] * 2, num_heads=8,
    transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1, context_dim=768)  # fmt: skip
SDXL = SD | dict(
    num_res_blocks=[2] * 3, channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10, context_dim=2048,
    use_linear_in_transformer=True, num_head_channels=64, num_classes="sequential",
    adm_in_channels=2816)  # fmt: skip
SD35 = dict(
    in_channels=16, depth=24, pos_embed_max_size=384, num_patches=384**2, qk_norm="rms", input_size=None,
    adm_in_channels=2048, context_embedder_config={
        "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    x_block_self_attn_layers=list(range(13)))  # fmt: skip
FLUX = dict(
    in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0,
    num_heads=24, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
    qkv_bias=True, guidance_embed=True, txt_ids_dims=[])  # fmt: skip
Z_IMAGE = dict(
    in_channels=16, dim=3840, cap_feat_dim=2560, n_layers=30, qk_norm=True, n_heads=30, n_kv_heads=30,
    axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], rope_theta=256.0, ffn_dim_multiplier=8 / 3,
    z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32)  # fmt: skip
# name -> (module, class, its configuration, latent, text [tokens, width], pooled, passes a candidate)
UNET = "comfy.ldm.modules.diffusionmodules.openaimodel", "UNetModel"
FAMILIES = {
    "SD1.5, 512 px": (*UNET, SD15, (4, 64, 64), (77, 768), None, 2),
    "SDXL, 1024 px": (*UNET, SDXL, (4, 128, 128), (77, 2048), 2816, 2),
    "SD3.5 medium, 1024 px": (
        "comfy.ldm.modules.diffusionmodules.mmdit", "MMDiT", SD35, (16, 128, 128), (154, 4096), 2048, 2),
    "Flux dev, 1024 px": ("comfy.ldm.flux.model", "Flux", FLUX, (16, 128, 128), (256, 4096), 768, 1),
    "Z-Image, 1024 px": ("comfy.ldm.lumina.model", "NextDiT", Z_IMAGE, (16, 128, 128), (128, 2560), None, 2),
    "Qwen-Image, 1024 px": (
        "comfy.ldm.qwen_image.model", "QwenImageTransformer2DModel", dict(in_channels=64, num_layers=60),
        (16, 1, 128, 128), (128, 3584), None, 2),
}  # fmt: skip


def host():
    """ComfyUI's package comfy, made ready to compute as on a GPU: with torch's own attention."""
    if "comfy" not in sys.modules:
        sys.path.insert(0, str(comfyui_folder()))
        if torch_is_cpu_build():
            mend_torchvision()
            mend_torchaudio()
        from comfy.cli_args import args

        args.cpu, args.use_pytorch_cross_attention = True, True
    import comfy.model_management
    import comfy.ops

    comfy.model_management.in_training = True
    return comfy


def network_of(name, weights, device="meta"):
    """A family's network without weights' content, [its weights in a dtype], computing in bfloat16."""
    module, kind, config, *_ = FAMILIES[name]
    operations = host().ops.disable_weight_init if weights == torch.bfloat16 else host().ops.manual_cast
    made = getattr(__import__(module, fromlist=[kind]), kind)
    return made(**config, dtype=weights, device=device, operations=operations).requires_grad_(False).eval()


def inputs_of(name, candidates, dtype, latent=None):
    """What a pass of so many candidates goes in with, guidance's two halves together."""
    _, kind, _, shape, text, pooled, passes = FAMILIES[name]
    n = passes * candidates
    x = torch.zeros(n, *(latent or shape), dtype=dtype)
    args, options = [x, torch.full((n,), 0.5, dtype=dtype)], {"context": torch.zeros(n, *text, dtype=dtype)}
    if pooled:
        options["y"] = torch.zeros(n, pooled, dtype=dtype)
    if kind == "NextDiT":
        options["num_tokens"] = text[0]
    if kind == "Flux":
        options["guidance"] = torch.full((n,), 3.5, dtype=dtype)
    return args, options


def materialised(network):
    """The network with the content that tensors have under the mode that is on."""
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor.is_meta:
                    made = torch.zeros(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, torch.nn.Parameter):
                        made = torch.nn.Parameter(made, tensor.requires_grad)
                    held[name] = made
    return network


def as_peft_has_it(adapter):
    """LoRA as PEFT computes it, which keeps each layer's input in float32."""
    for layer in adapter.layers.values():
        layer.lora_variant.clear()
        layer.cast_input_dtype_enabled = True


def rows(name):
    """A family's rows."""
    flops, sizes = None, {}
    for weights, dtype in WEIGHTS.items():
        network = network_of(name, dtype)
        own = sizes[weights] = sum(p.nbytes for p in network.parameters()) / GIB
        adapter = Adapter(network, rank=RANK, alpha=RANK, targets=TARGETS, device="meta")
        trained = PER_WEIGHT * sum(p.numel() for p in adapter.parameters()) / GIB
        of = blocks(network, adapter.layers.values())
        with FakeTensorMode(allow_non_fake_inputs=True):
            materialised(network)
            args, options = inputs_of(name, 1, torch.bfloat16)
            run = partial(network, *args, **options)
            needs = {"D3PO": needed(network, of, run)}
            as_peft_has_it(adapter)
            if not flops:
                again = [block for block in of if block not in needs["D3PO"].last(0)]
                needs["PEFT"], flops = needed(network, of, run), work(run, Checkpointing(again))

        def row(kept, held=own, checkpointing=True, lora="D3PO", weights=weights, offloaded=False):
            return {
                "family": name,
                "latent": list(args[0].shape[1:]),
                "candidates": 1,
                "options": dict(checkpointing=checkpointing, lora=lora, weights=weights, offloaded=offloaded),
                "weights_gib": round(sizes[weights], 2),
                "saved_gib": round(kept / GIB, 2),
                "peak_gib": round(held + trained + SPARE * kept / GIB, 2),
                "tflop": round(flops[checkpointing] / TERA, 1),
            }

        for lora, need in needs.items():
            yield row(need.whole, checkpointing=False, lora=lora)
            yield row(need.checkpointed, lora=lora)
    # each layer's weights are copied as it runs, as those in fp8 are cast: of these the copies are kept too
    for weights in sizes:
        yield row(needs["D3PO"].checkpointed, 0, weights=weights, offloaded=True)


def work(run, checkpointing):
    """Floating-point operations of a pass with its backward pass: (with all kept, with checkpointing)."""
    while True:
        known = [set(block.written_over) for block in checkpointing.blocks]
        with FlopCounterMode(display=False) as counter, torch.enable_grad(), checkpointing.applied():
            output = run()
            forward = counter.get_total_flops()
            output.float().square().mean().backward()
        # a block in which tensors were found to be written over has been gone through once more
        if known == [block.written_over for block in checkpointing.blocks]:
            return counter.get_total_flops() - forward, counter.get_total_flops()


def real(latent=32):
    """Bytes that SD1.5's whole network keeps of one candidate at a small latent, in float32 on the processor:
    (as fake tensors tell, as counted, as the process grows by)."""
    name, process, found = "SD1.5, 512 px", psutil.Process(), []
    for mode in (FakeTensorMode(allow_non_fake_inputs=True), nullcontext()):
        network = network_of(name, torch.float32)
        adapter = Adapter(network, rank=RANK, alpha=RANK, targets=TARGETS, device="meta")
        with mode:
            materialised(network)
            args, options = inputs_of(name, 1, torch.float32, (4, latent, latent))
            run = partial(network, *args, **options)
            with torch.no_grad():
                run()  # what kernels hold is there from here on
            before = process.memory_info().rss
            kept = run()
            grown = process.memory_info().rss - before
            del kept
            found.append(needed(network, blocks(network, adapter.layers.values()), run).whole)
    return *found, grown


def table(found):
    """Rows as a table in an artist's words: what the card needs, and which is enough."""
    lines = [
        "| model | as downloaded | card, all that is kept | card, with checkpointing | "
        "and weights in main memory | work of a pass |",
        "|---|---|---|---|---|---|",
    ]
    ours = {}
    for row in found:
        if row["options"]["lora"] == "D3PO":
            of = ours.setdefault((row["family"], row["options"]["weights"]), {})
            of[row["options"]["checkpointing"], row["options"]["offloaded"]] = row
    for (family, weights), of in ours.items():
        plain, again, least = of[False, False], of[True, False], of[True, True]
        lines.append(
            f"| {family} | {weights}, {plain['weights_gib']:.1f} GiB | {card(plain)} | {card(again)} | "
            f"{card(least)} | {plain['tflop']:.0f} and {again['tflop']:.0f} TFLOP |"
        )
    return "\n".join(lines)


def card(row):
    """The smallest card for a row, and what it needs."""
    size = next((size for size in CARDS if size * 0.98 >= row["peak_gib"] + OF_SYSTEM), None)
    return f"{row['peak_gib']:.1f} GiB: " + (f"{size} GB" if size else "none")


def main(file=None, write=False):
    counted = real()
    print("SD1.5 in float32, 32x32, GiB: fake, counted, process:", *(f"{n / GIB:.3f}" for n in counted))
    found = (row for name in FAMILIES for row in rows(name))
    collected(found, table, file, (DOC, BEGIN, END) if write else None)
