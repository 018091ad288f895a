"""Models in ONNX, small ones written here, against torch."""

import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from d3po_core.candidates.onnx_models import PREPARATIONS, OnnxModel

IMAGES = torch.rand(3, 20, 30, 3, generator=torch.Generator().manual_seed(0))
MEAN, SPREAD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
WANTED = {  # of pixels [N, H, W, 3]
    "ImageNet: RGB, normalised": lambda x: (x - MEAN) / SPREAD,
    "RGB from 0 to 1": lambda x: x,
    "RGB from -1 to 1": lambda x: x * 2 - 1,
    "Caffe: BGR from 0 to 255 less the mean": lambda x: (
        x[..., [2, 1, 0]] * 255 - torch.tensor([104.0, 117.0, 123.0])
    ),
}


def write(path, shape, axes=(2, 3), kind=TensorProto.FLOAT):
    """A model that gives the means over the axes: numbers of the colours, where these are its sides."""
    place = helper.make_tensor_value_info
    axes = helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes)
    nodes = [helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0)]
    graph = helper.make_graph(
        nodes, "means", [place("pixels", kind, shape)], [place("means", kind, None)], [axes]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("shape, axes, size, sides, kind", [
    ((1, 3, 8, 12), (2, 3), 0, (8, 12), TensorProto.FLOAT),
    (("n", 16, 16, 3), (1, 2), 99, (16, 16), TensorProto.FLOAT16),
    (("n", "c", "h", "w"), (2, 3), 10, (10, 10), TensorProto.DOUBLE),
    ((None, 3, None, None), (2, 3), 0, (224, 224), TensorProto.FLOAT),
])  # fmt: skip
def test_pictures_come_as_the_file_says_and_a_number_is_chosen(
    tmp_path, preparation, shape, axes, size, sides, kind
):
    file = write(tmp_path / "means.onnx", shape, axes, kind)
    small = resize(IMAGES.movedim(-1, 1), sides, InterpolationMode.BILINEAR, antialias=True).movedim(1, -1)
    means = WANTED[preparation](small).mean((1, 2))
    off = 2e-3 if kind == TensorProto.FLOAT16 else 1e-5
    for number in (0, 1, -1):
        found = OnnxModel(file, preparation, number, size)(IMAGES)
        torch.testing.assert_close(found, means[:, number], rtol=off, atol=off)


def test_each_place_of_a_picture_reaches_its_place_of_the_model(tmp_path):
    file = write(tmp_path / "rows.onnx", (1, 3, 20, 30), (1, 3))
    found = OnnxModel(file, "RGB from 0 to 1", 5)(IMAGES)
    torch.testing.assert_close(found, IMAGES.mean((2, 3))[:, 5])


def test_what_will_not_do_is_told(tmp_path, monkeypatch):
    def refused(shape, words, kind=TensorProto.FLOAT, number=0):
        with pytest.raises(ValueError, match=words):
            OnnxModel(write(tmp_path / "a.onnx", shape, (1,), kind), "RGB from 0 to 1", number)(IMAGES)

    refused((1, 3, 8), r"it takes pixels \[1, 3, 8\] \(tensor\(float\)\), and a model of pictures takes one")
    refused((1, 3, 8, 8), r"tensor\(int32\)", TensorProto.INT32)
    refused((1, 4, 8, 8), "which is no picture in red, green and blue")
    refused(
        (1, 3, 2, 2), "it gives 4 numbers of a picture, so there is none at 4. Choose from 0 to 3", number=4
    )
    (tmp_path / "b.onnx").write_bytes(np.arange(9).tobytes())
    with pytest.raises(ValueError, match="onnxruntime cannot read it: "):
        OnnxModel(tmp_path / "b.onnx", "RGB from 0 to 1", 0)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="need the package onnxruntime.* pip install onnxruntime"):
        OnnxModel(tmp_path / "b.onnx", "RGB from 0 to 1", 0)
