"""Layout `openvino`: convert and compress the graph of an exit with OpenVINO, and run it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lwr.common.errors import missing_extra
from lwr.export.graphs.onnx_graph import check_onnx_packages


def check_openvino_packages() -> None:
    """Check that the packages of the extra `openvino` are installed. Raises BadInput."""
    check_onnx_packages("openvino", "openvino")
    for package in ("openvino", "nncf"):
        if find_spec(package) is None:
            raise missing_extra("layout openvino", package, "openvino")


def write_openvino(file: Path, out: Path, int8: bool) -> None:
    """Convert an ONNX graph to OpenVINO.

    Args:
        file: The ONNX graph.
        out: The .xml file to write; the weights are beside it, in a .bin file.
        int8: Whether embeddings and weights of linear layers are stored in int8, a scale per row.
    """
    import openvino

    model = openvino.convert_model(file)
    if int8:
        import nncf

        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(model, out, compress_to_fp16=False)


def run_openvino(file: Path, features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the scores that OpenVINO computes on a CPU, float32 [rows]."""
    import openvino

    # else it computes in bfloat16 on CPUs that have it
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(file, "CPU", settings)
    return np.asarray(model(dict(features))["logits"])[:, 0]
