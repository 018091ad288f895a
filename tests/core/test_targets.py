"""Which layers the plain names of targets stand for, by how families of networks call them."""

import pytest
from torch import nn

from d3po_core.training.adapter import target_modules

# family -> (attention's layers, those of feed-forwards, layers that are neither)
LAYERS = {
    "SD": (
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q "
        "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
        "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj",
        "time_embed.0 input_blocks.1.0.emb_layers.1 input_blocks.1.1.proj_in",
    ),
    "SD3": (
        "joint_blocks.0.x_block.attn.qkv joint_blocks.0.context_block.attn.proj "
        "joint_blocks.0.x_block.attn2.qkv",
        "joint_blocks.0.x_block.mlp.fc1",
        "t_embedder.mlp.0 y_embedder.mlp.2 context_embedder joint_blocks.0.x_block.adaLN_modulation.1",
    ),
    "Flux": (
        "double_blocks.0.img_attn.qkv double_blocks.0.txt_attn.proj single_blocks.0.linear1 "
        "single_blocks.0.linear2",
        "double_blocks.0.img_mlp.0",
        "img_in time_in.in_layer single_blocks.0.modulation.lin double_blocks.0.img_mod.lin "
        "final_layer.linear",
    ),
    "Lumina": (
        "layers.0.attention.qkv noise_refiner.0.attention.out",
        "layers.0.feed_forward.w1",
        "t_embedder.mlp.0 cap_embedder.1 layers.0.adaLN_modulation.1",
    ),
    "Qwen-Image": (
        "transformer_blocks.0.attn.to_q transformer_blocks.0.attn.add_k_proj",
        "transformer_blocks.0.img_mlp.net.0.proj",
        "time_text_embed.timestep_embedder.linear_1 transformer_blocks.0.img_mod.1 norm_out.linear",
    ),
    "HunyuanVideo": (
        "double_blocks.0.img_attn.qkv single_blocks.0.linear1",
        "double_blocks.0.txt_mlp.2",
        "txt_in.individual_token_refiner.blocks.0.self_attn.qkv "
        "txt_in.individual_token_refiner.blocks.0.mlp.0 vector_in.in_layer",
    ),
    "Wan": (
        "blocks.0.self_attn.q blocks.0.cross_attn.o blocks.0.cross_attn.k_img",
        "blocks.0.ffn.0",
        "time_projection.1 text_embedding.0 head.head",
    ),
}


@pytest.mark.parametrize("family", LAYERS)
def test_targets_are_a_familys_attention_and_feed_forward_layers(family):
    attention, feed_forward, others = (set(paths.split()) for paths in LAYERS[family])
    net = network(attention | feed_forward | others)
    assert set(target_modules(net, "attention")) == attention
    assert set(target_modules(net, "attention and feed-forward")) == attention | feed_forward
    assert set(target_modules(net, "all linear")) == attention | feed_forward | others


def network(paths):
    root = nn.Module()
    for path in paths:
        *parents, name = path.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.add_module(name, nn.Linear(1, 1))
    return root
