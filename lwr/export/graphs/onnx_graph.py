"""Layout `onnx`: fuse and quantise the graph of an exit with onnxruntime, and run it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lwr.common.errors import missing_extra

MAX_BYTES = 2**31
"""ONNX keeps a larger graph in several files, which onnxruntime's tools do not read in the same way."""


def check_onnx_packages(layout: str, extra: str) -> None:
    """Check that the packages are installed that make an ONNX graph and run it. Raises BadInput."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise missing_extra(f"layout {layout}", package, extra)


def optimize_onnx(file: Path, out: Path, gelu_approximation: bool) -> None:
    """Fuse the operations of a graph by onnxruntime's optimizer for transformers.

    Args:
        file: The graph.
        out: The file to write.
        gelu_approximation: Whether GELU is computed by tanh, which is faster and not exact.

    Raises:
        ValueError: The graph is too large.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    _check_size(file, "--optimize")
    options = FusionOptions("bert")  # its fusions are those of decoders, too
    options.enable_gelu_approximation = gelu_approximation
    optimize_model(str(file), "bert", opt_level=2, optimization_options=options).save_model_to_file(str(out))


def quantize_onnx(file: Path, out: Path) -> None:
    """Let the linear layers of a graph compute in int8: weights by channel, inputs by batch, when it runs.

    Weights have 7 bits, because sums of 8-bit products overflow on CPUs without VNNI.

    Raises:
        ValueError: The graph is too large.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _check_size(file, "--precision int8")
    quantize_dynamic(
        file,
        out,
        op_types_to_quantize=["MatMul", "Attention"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )


def _check_size(file: Path, option: str) -> None:
    size = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))
    if size >= MAX_BYTES:
        raise ValueError(
            f"{option}: the graph has {size / 2**30:.1f} GiB, and onnxruntime's tools take less than 2; "
            "leave out the option, or export with `--layout openvino`"
        )


def run_onnx(file: Path, features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the scores that onnxruntime computes on a CPU, float32 [rows]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], dict(features))[0])[:, 0]
