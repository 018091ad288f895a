import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from d3po_core.training.adapter import Adapter
from d3po_core.training.lora_files import Part, joined, load_lora, save_lora, to_parts, to_state_dict

WIDEST = "all linear and convolutions"


@pytest.fixture
def tuned(toy, setup):
    denoise, adapter = setup(dtype=torch.float64)
    toy.stir(adapter)
    return denoise.net, adapter


def test_a_files_names_are_the_hosts_unless_renamed(tuned):
    _, adapter = tuned
    layer = "transformer_blocks.0.attn1.to_out.0"
    tensors = to_state_dict(adapter.weights(), adapter.alpha)
    for part, shape in (("lora_up.weight", (4, 2)), ("lora_down.weight", (2, 4)), ("alpha", ())):
        assert tensors[f"diffusion_model.{layer}.{part}"].shape == shape
    assert len(tensors) == 3 * len(adapter.layers)
    kohya = to_state_dict(
        adapter.weights(), adapter.alpha, lambda path: "lora_unet_" + path.replace(".", "_")
    )
    assert "lora_unet_transformer_blocks_0_attn1_to_out_0.lora_up.weight" in kohya and len(kohya) == len(
        tensors
    )


def test_merging_the_file_into_the_base_equals_the_adapted_network(toy, tuned, tmp_path):
    net, adapter = tuned
    save_lora(to_state_dict(adapter.weights(), adapter.alpha), tmp_path / "lora.safetensors", {})
    tensors, _ = load_lora(tmp_path / "lora.safetensors")
    merged, convolutions = toy.net(dtype=torch.float64), 0
    for name, up in tensors.items():
        if name.endswith(".lora_up.weight"):
            path = name.removeprefix("diffusion_model.").removesuffix(".lora_up.weight")
            down = tensors[f"diffusion_model.{path}.lora_down.weight"]
            weight = merged.get_submodule(path).weight
            scale = tensors[f"diffusion_model.{path}.alpha"] / down.shape[0]
            weight += scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
            convolutions += weight.ndim == 4
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    sigma = torch.tensor([9.0, 2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(merged(x, sigma), net(x, sigma), rtol=1e-10, atol=1e-12)
    assert convolutions == 2
    assert not torch.allclose(net(x, sigma), toy.net(dtype=torch.float64)(x, sigma), rtol=1e-2)


def swapped(rows):
    return torch.cat(rows.chunk(2)[::-1])


@pytest.mark.parametrize("adapter, scale", [("LoRA", 3.0 / 2), ("rsLoRA", 3.0 / 2**0.5)])
def test_the_parts_of_a_layer_have_their_rows_of_its_update(tmp_path, adapter, scale):
    A, B = torch.randn(2, 5), torch.randn(6, 2)
    parts = {"qkv": [Part("q.A", "q.B", (0, 2)), Part("k.A", "k.B", (2, 4), swapped)]}
    file = to_parts({"qkv.lora_down.weight": A, "qkv.lora_up.weight": B}, 3.0, parts, adapter)
    save_lora(file | {"lora": A}, tmp_path / "lora.safetensors", {})
    loaded, _ = load_lora(tmp_path / "lora.safetensors")
    update = scale * B @ A
    torch.testing.assert_close(loaded["q.B"] @ loaded["q.A"], update[:2])
    torch.testing.assert_close(loaded["k.B"] @ loaded["k.A"], update[[4, 5, 2, 3]])
    assert set(file) == {"q.A", "q.B", "k.A", "k.B"}
    up, down, alpha = joined(
        [(file[part.up], file[part.down], None, part.rows, part.change) for part in parts["qkv"]], 6
    )
    torch.testing.assert_close(up @ down, update)
    assert len(down) == 2 and alpha is None


def test_parts_of_several_loras_add_up_their_ranks():
    q, k = (torch.randn(2, 1), torch.randn(1, 5)), (torch.randn(4, 2), torch.randn(2, 5))
    up, down, alpha = joined([(*q, None, (0, 2), None), (*k, 3.0, (2, 4), swapped)], 6)
    expected = torch.cat([q[0] @ q[1], 1.5 * (k[0] @ k[1])[[2, 3, 0, 1]]])
    torch.testing.assert_close(up @ down, expected)
    assert len(down) == 3 and alpha is None
    assert joined([(*q, 4.0, None, None)], 2) == (*q, 4.0)


@pytest.mark.parametrize("rows", [[(0, 2)], [(0, 4), (2, 4)], [(2, 4)]])
def test_parts_that_are_not_all_of_a_layer_once_are_refused(rows):
    weights = {"qkv.lora_down.weight": torch.ones(2, 5), "qkv.lora_up.weight": torch.ones(6, 2)}
    parts = {"qkv": [Part(f"{i}.A", f"{i}.B", each) for i, each in enumerate(rows)]}
    with pytest.raises(ValueError, match="the parts of qkv are not all of its 6 rows, each once"):
        to_parts(weights, 3.0, parts)


def test_save_and_load_keep_tensors_and_metadata(tuned, tmp_path):
    _, adapter = tuned
    tensors = {
        name: tensor.t() if tensor.ndim == 2 else tensor  # t() makes them not contiguous
        for name, tensor in to_state_dict(adapter.weights(), adapter.alpha).items()
    }
    path = tmp_path / "lora.safetensors"
    save_lora(tensors, path, {"ss_network_dim": "2", "step": 3, "settings": {"beta": 0.1}})
    loaded, metadata = load_lora(path)
    assert loaded.keys() == tensors.keys() and all(
        torch.equal(loaded[name], tensors[name]) for name in tensors
    )
    assert metadata == {"ss_network_dim": "2", "step": "3", "settings": '{"beta": 0.1}'}


def test_loaded_weights_give_the_same_network(toy, tuned):
    net, adapter = tuned
    other = toy.net(dtype=torch.float64)
    Adapter(other, rank=2, alpha=3.0, targets=WIDEST, seed=9).load(adapter.weights())
    x, sigma = torch.ones(2, 2, 4, 4, dtype=torch.float64), torch.tensor([9.0, 0.5], dtype=torch.float64)
    assert torch.equal(net(x, sigma), other(x, sigma))


@pytest.mark.parametrize("options", [{"rank": 3}, {"targets": "attention"}])
def test_weights_of_another_rank_or_other_layers_are_refused_and_nothing_changes(toy, tuned, options):
    _, adapter = tuned
    other = Adapter(toy.net(), **{"rank": 2, "targets": WIDEST} | options)
    before = adapter.weights()
    with pytest.raises(ValueError, match="another rank, other targets or another base model.*rank 2"):
        adapter.load(other.weights())
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.weights().items())


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no LoRA" * 50),
        lambda path: path.write_bytes(pickle.dumps(Trap())),
        lambda path: torch.save({"layer.lora_up.weight": torch.ones(2, 2)}, path),
        lambda path: save_file({"model.weight": torch.ones(2, 2)}, path),
        lambda path: (
            save_file({"a.lora_up.weight": torch.ones(9, 9)}, path),
            path.write_bytes(path.read_bytes()[:-8]),
        ),
    ],
    ids=["empty", "garbage", "pickle", "torch.save", "no LoRA", "truncated"],
)
def test_a_file_that_is_no_lora_is_an_error_that_names_it_and_stays_as_it_is(tmp_path, write):
    path = tmp_path / "foreign.safetensors"
    write(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*nothing was changed"):
        load_lora(path)
    assert path.read_bytes() == before


def test_a_file_that_does_not_exist_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "gone.safetensors"))):
        load_lora(tmp_path / "gone.safetensors")
