"""A detector as an ONNX file, by PyTorch's TorchScript exporter, with a description in its metadata."""

import contextlib
import io
import json
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from clim.files import replacing

from ..outputs import write_array
from .graph import DetectorGraph, class_rows

OPSET = 17
SIDES = 96, 128  # px, height and width of the image that is traced; others work too


def write_onnx(model: nn.Module, path: Path, description: dict, *, dynamic_classes: bool) -> list[Path]:
    """Write the detector ``model``; ``description`` becomes metadata, each value in json. Returns the files.

    With ``dynamic_classes`` a second input ``class_embeddings`` (K, D) float32 gives the classes, and a .npy file
    beside ``path`` holds the rows of the present ones.
    """
    outputs = {name: {0: "detections"} for name in ("boxes", "scores", "classes", "masks")}
    if not getattr(model.roi_heads, "mask_on", False):
        del outputs["masks"]
    inputs = {"image": {0: "height", 1: "width"}}
    noise = torch.randint(0, 256, (*SIDES, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    values = [noise]
    if dynamic_classes:
        inputs["class_embeddings"] = {0: "number_of_classes"}
        values.append(class_rows(model))
        mask = model.roi_heads.predictors[-1].freq_weight
    torch.onnx.register_custom_op_symbolic("aten::expm1", expm1, OPSET)
    with (
        replacing(path) as partial,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):  # a failure prints the whole graph
        warnings.simplefilter("ignore")  # they are about constants, which other sizes show to be right
        torch.onnx.export(
            DetectorGraph(model).eval(), tuple(values), partial, dynamo=False, opset_version=OPSET,
            input_names=list(inputs), output_names=list(outputs), dynamic_axes=inputs | outputs,
        )  # fmt: skip
        file = onnx.load(partial)
        onnx.helper.set_model_props(file, {key: json.dumps(value) for key, value in description.items()})
        onnx.save(file, partial)
    if not dynamic_classes:
        return [path]
    model.roi_heads.set_vocabulary(values[1], mask)  # the graph has replaced it by its input
    write_array(path.with_suffix(".npy"), values[1].numpy())
    return [path, path.with_suffix(".npy")]


def expm1(g, x):
    """exp(x) - 1, which ONNX lacks, without loss of digits near 0: tanh(x / 2) · (exp(x) + 1)."""
    one, half = (g.op("CastLike", g.op("Constant", value_t=torch.tensor(value)), x) for value in (1.0, 0.5))
    return g.op("Mul", g.op("Tanh", g.op("Mul", x, half)), g.op("Add", g.op("Exp", x), one))
