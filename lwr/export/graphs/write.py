"""Write an exit as a graph, with its tokenizer and a README.md, and compare its scores with the reranker's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from lwr.export.classifier import fit_pairs
from lwr.export.graphs.agreement import check_agreement, measure_agreement
from lwr.export.graphs.onnx_graph import optimize_onnx, quantize_onnx, run_onnx
from lwr.export.graphs.openvino_graph import run_openvino, write_openvino
from lwr.export.graphs.trace import trace_exit
from lwr.export.pair_tokenizer import write_pair_tokenizer
from lwr.export.readme import exit_readme
from lwr.export.truncate import truncate_config
from lwr.model.reranker import LayerwiseReranker


def write_graph(
    reranker: LayerwiseReranker,
    layer: int,
    folder: Path,
    layout: Literal["onnx", "openvino"],
    int8: bool = False,
    optimization: Literal["O2", "O3"] | None = None,
) -> None:
    """Write exit `layer` to onnx/model.onnx or openvino/openvino_model.xml, where sentence-transformers looks for it.

    Args:
        reranker: A reranker without an adapter.
        layer: The exit.
        folder: An empty folder.
        layout: The runtime.
        int8: Whether linear layers compute in int8 (`onnx`), or are stored in it (`openvino`).
        optimization: For `onnx`: `O2` fuses operations; `O3` also computes GELU by tanh.

    Raises:
        ValueError: The tokenizer cannot write the reranker's rows, or the graph scores otherwise than the reranker.
    """
    config = truncate_config(reranker.config, layer)
    config.num_labels = 1
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    config.save_pretrained(folder)
    pair = write_pair_tokenizer(reranker.prompt, reranker.num_embeddings, folder)
    (folder / layout).mkdir()
    graph = folder / ("onnx/model.onnx" if layout == "onnx" else "openvino/openvino_model.xml")
    with TemporaryDirectory() as scratch:
        traced, optimized = Path(scratch) / "traced.onnx", Path(scratch) / "optimized.onnx"
        if layout == "onnx" and not int8 and optimization is None:
            trace_exit(reranker, layer, pair, graph)
        else:
            trace_exit(reranker, layer, pair, traced)
        if optimization is not None:
            optimize_onnx(traced, optimized if int8 else graph, optimization == "O3")
        if layout == "openvino":
            write_openvino(traced, graph, int8)
        elif int8:
            quantize_onnx(traced if optimization is None else optimized, graph)
    run = partial(run_onnx if layout == "onnx" else run_openvino, graph)
    agreement = measure_agreement(reranker, layer, pair, run)
    precision = "int8" if int8 else "float32"
    name = f"layout {layout} in {precision}"
    check_agreement(agreement, approximate=int8 or optimization == "O3", name=name)
    readme = exit_readme(
        "graph",
        reranker,
        layer,
        pair,
        fit_pairs(reranker.prompt)[0],
        agreement.score,
        agreement.difference,
        library=layout,
        layout=layout,
        precision=precision,
        optimization=optimization,
        agreement=agreement,
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
