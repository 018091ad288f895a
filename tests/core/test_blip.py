"""ImageReward and BLIP against a ViT and a BERT in plain torch, with the original names."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertTokenizer

from d3po_core.candidates.blip import IMAGE_REWARD, MATCH, Blip

WIDE, READ, PATCH, SIDE = 128, 768, 8, 4  # of pictures, of texts; a picture has SIDE x SIDE patches
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s", "on", "red", ",", "e"]
VOCABULARY = len(WORDS) + 2  # [DEC] and [ENC]


def attention(query, key, value):
    """[N, L, D] each; heads of 64."""
    split = lambda x: x.unflatten(-1, (-1, 64)).transpose(1, 2)
    scores = split(query) @ split(key).mT / 8
    return (scores.softmax(-1) @ split(value)).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """One of timm's."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDE, eps=1e-6), nn.LayerNorm(WIDE, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDE, 3 * WIDE), "proj": nn.Linear(WIDE, WIDE)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDE, 48), "fc2": nn.Linear(48, WIDE)})

    def forward(self, x):
        x = x + self.attn["proj"](attention(*self.attn["qkv"](self.norm1(x)).chunk(3, -1)))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDE))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + SIDE**2, WIDE))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDE, PATCH, PATCH)})
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.norm = nn.LayerNorm(WIDE, eps=1e-6)

    def forward(self, pixels):
        patches = self.patch_embed["proj"](pixels).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1) + self.pos_embed
        return self.norm(self.blocks(x))


def attending(width):
    own = {"query": nn.Linear(READ, READ), "key": nn.Linear(width, READ), "value": nn.Linear(width, READ)}
    return nn.ModuleDict({"self": nn.ModuleDict(own), "output": ending(READ)})


def ending(width):
    return nn.ModuleDict({"dense": nn.Linear(width, READ), "LayerNorm": nn.LayerNorm(READ, eps=1e-12)})


def ended(module, x, before):
    return module["LayerNorm"](module["dense"](x) + before)


class Layer(nn.Module):
    """One of BERT's, which looks at the picture between."""

    def __init__(self):
        super().__init__()
        self.attention, self.crossattention = attending(READ), attending(WIDE)
        self.intermediate, self.output = nn.ModuleDict({"dense": nn.Linear(READ, 40)}), ending(40)

    def forward(self, x, seen):
        for module, source in ((self.attention, None), (self.crossattention, seen)):
            own, source = module["self"], x if source is None else source
            found = attention(own["query"](x), own["key"](source), own["value"](source))
            x = ended(module["output"], found, x)
        return ended(self.output, F.gelu(self.intermediate["dense"](x)), x)


class BERT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleDict({
            "word_embeddings": nn.Embedding(VOCABULARY, READ),
            "position_embeddings": nn.Embedding(40, READ), "LayerNorm": nn.LayerNorm(READ, eps=1e-12),
        })  # fmt: skip
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([Layer(), Layer()])})

    def forward(self, ids, seen):
        words = self.embeddings["word_embeddings"](torch.tensor(ids))
        x = self.embeddings["LayerNorm"](words + self.embeddings["position_embeddings"].weight[: len(ids)])
        x = x.expand(len(seen), -1, -1)
        for layer in self.encoder["layer"]:
            x = layer(x, seen)
        return x


class Original(nn.Module):
    """BLIP's part of ImageReward, or with a head for matching BLIP itself."""

    def __init__(self):
        super().__init__()
        self.visual_encoder, self.text_encoder = ViT(), BERT()
        self.vision_proj = nn.Linear(WIDE, 4)  # in the files, and of no use here


def moved(network):
    for parameter in network.parameters():  # biases begin at 0, norms at 1: each should matter
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network.eval()


def image_reward():
    torch.manual_seed(0)
    inner = nn.Sequential(*(nn.Linear(*widths) if widths else nn.Identity() for widths in (
        (768, 1024), None, (1024, 128), None, (128, 64), None, (64, 16), (16, 1))))  # fmt: skip
    return moved(nn.ModuleDict({"blip": Original(), "mlp": nn.ModuleDict({"layers": inner})}))


def matching():
    network = Original()
    network.itm_head = nn.Linear(READ, 2)
    return moved(network)


def vocabulary(folder):
    file = folder / "vocab.txt"
    file.write_text("\n".join(WORDS) + "\n", "utf-8")
    return file


@pytest.mark.parametrize("kind", [IMAGE_REWARD, MATCH])
def test_scores_and_their_gradients_are_the_original_networks(kind):
    whole = image_reward() if kind == IMAGE_REWARD else matching()
    ids = [2, 4, 5, 6, 3]
    pixels = torch.randn(3, 3, PATCH * SIDE, PATCH * SIDE, requires_grad=True)
    if kind == IMAGE_REWARD:
        read = whole["blip"].text_encoder(ids, whole["blip"].visual_encoder(pixels))
        expected = (whole["mlp"]["layers"](read[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072
    else:
        read = whole.text_encoder([VOCABULARY - 1, *ids[1:]], whole.visual_encoder(pixels))
        expected = whole.itm_head(read[:, 0]).softmax(-1)[:, 1]
    positions = {f"{'blip.' * (kind == IMAGE_REWARD)}text_encoder.embeddings.position_ids": torch.arange(40)}
    network = Blip.of(whole.state_dict() | positions)
    assert (network.name, network.size) == (kind, PATCH * SIDE)
    found = network(pixels, ids)
    assert expected.detach().std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(each.sum(), pixels)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[1].abs().max()))


def test_a_text_is_read_as_by_transformers_tokenizer_and_cut(tmp_path):
    network = Blip.of(matching().state_dict())
    file = vocabulary(tmp_path)
    read = network.reader(file)
    theirs = BertTokenizer(vocab=str(file))
    for text in ("A caTs, on red dog", "é", "", "a " * 100):
        assert read(text) == theirs(text, truncation=True, max_length=35).input_ids
    assert read("Cats, é") == [2, 5, 6, 9, 10, 3] and len(read("a " * 100)) == 35
    file.write_text("\n".join(WORDS[:-1]), "utf-8")
    with pytest.raises(ValueError, match=r"vocab.txt has 10 lines, .* has 11. It needs that of bert-base-un"):
        network.reader(file)


@pytest.mark.parametrize("change", [
    {"itm_head.weight": None}, {"text_encoder.encoder.layer.1.output.dense.bias": None},
    {"visual_encoder.norm.bias": torch.zeros(5)}, {"visual_encoder.blocks.2.attn.qkv.bias": None},
    {"visual_encoder.more": torch.zeros(5)},
])  # fmt: skip
def test_another_file_is_refused(change):
    tensors = {name: own for name, own in (matching().state_dict() | change).items() if own is not None}
    with pytest.raises(ValueError, match="this is neither ImageReward"):
        Blip.of(tensors)
