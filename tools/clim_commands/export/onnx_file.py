"""A detector as an ONNX file, by PyTorch's TorchScript exporter, with a description in its metadata."""

import contextlib
import io
import json
import os
import warnings

import onnx
import torch
from torch import nn

from .graph import DetectorGraph, class_rows

OPSET = 17
SIDES = 96, 128  # px, height and width of the image that is traced; others work too


def write_onnx(model: nn.Module, path: str | os.PathLike, description: dict, *, dynamic_classes: bool) -> None:
    """Write the detector ``model``; ``description`` becomes metadata, each value in json.

    With ``dynamic_classes`` a second input ``class_embeddings`` (K, D) float32 gives the classes.
    """
    outputs = {"boxes": {0: "detections"}, "scores": {0: "detections"}, "classes": {0: "detections"}}
    if model.roi_heads.mask_on if hasattr(model.roi_heads, "mask_on") else False:
        outputs["masks"] = {0: "detections"}
    inputs = {"image": {0: "height", 1: "width"}}
    noise = torch.randint(0, 256, (*SIDES, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    values = [noise]
    if dynamic_classes:
        inputs["class_embeddings"] = {0: "number_of_classes"}
        values.append(class_rows(model.roi_heads.predictors[-1])[:2])
    torch.onnx.register_custom_op_symbolic("aten::expm1", expm1, OPSET)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # a failure prints the whole graph
        warnings.simplefilter("ignore")  # they are about constants, which other sizes show to be right
        torch.onnx.export(
            DetectorGraph(model).eval(), tuple(values), path, dynamo=False, opset_version=OPSET,
            input_names=list(inputs), output_names=list(outputs), dynamic_axes=inputs | outputs,
        )  # fmt: skip
    file = onnx.load(path)
    onnx.helper.set_model_props(file, {key: json.dumps(value) for key, value in description.items()})
    onnx.save(file, path)


def expm1(g, x):
    """exp(x) - 1, which ONNX lacks, without loss of digits near 0: tanh(x / 2) · (exp(x) + 1)."""
    one, half = (g.op("CastLike", g.op("Constant", value_t=torch.tensor(value)), x) for value in (1.0, 0.5))
    return g.op("Mul", g.op("Tanh", g.op("Mul", x, half)), g.op("Add", g.op("Exp", x), one))
