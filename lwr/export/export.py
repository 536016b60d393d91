"""Export exits of a reranker for programs that do not know lwr, in one of several formats."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput, first_line
from lwr.common.exits import describe_layers, exit_name
from lwr.common.json_lines import write_json
from lwr.formats.calibration import FILE_NAME as CALIBRATION_FILE
from lwr.formats.calibration import calibration_record

if TYPE_CHECKING:
    from lwr.model.reranker import LayerwiseReranker

Layout = Literal["huggingface", "sentence-transformers", "onnx", "openvino", "upstream"]
Optimization = Literal["O2", "O3"]
GraphPrecision = Literal["float32", "int8"]


def export(
    model: str | Path,
    layer: int,
    out: Path,
    layout: Layout = "huggingface",
    precision: GraphPrecision = "float32",
    optimization: Optimization | None = None,
) -> None:
    """Write exit `layer` of a reranker to the folder `out`, with adapters merged.

    Args:
        model: Folder of a trained reranker, or an upstream layerwise checkpoint.
        layer: The exit; blocks above it are left out.
        out: Folder to write; nothing is left behind where the export fails.
        layout: `huggingface`: a sequence classifier with one label, whose logit is the score.
            `sentence-transformers`: a modular CrossEncoder of its version 5.4 or later.
            `onnx`, `openvino`: a graph for onnxruntime or OpenVINO.
            `upstream`: FlagEmbedding's layerwise checkpoint, with all exits up to `layer`.
        precision: `int8`, for graphs: linear layers are quantised.
        optimization: `O2` or `O3`, for `onnx`: onnxruntime's optimizer fuses operations; `O3` also approximates GELU.

    Raises:
        ValueError: `out` holds the model, the layer has no head, the backbone, its pooling or its prompt cannot be
            expressed in that layout, or packages of the layout's extra are missing.
    """
    # imported late, so that the command line reads `Layout` without loading torch
    from lwr.export.card import describe_calibration, describe_fused_exit
    from lwr.export.classifier import write_classifier
    from lwr.export.cross_encoder import check_sentence_transformers, write_cross_encoder
    from lwr.export.graphs.onnx_graph import check_onnx_packages
    from lwr.export.graphs.openvino_graph import check_openvino_packages
    from lwr.export.graphs.write import write_graph
    from lwr.export.upstream import write_upstream
    from lwr.model.linear.lora import merge_lora
    from lwr.model.reranker import LayerwiseReranker
    from lwr.model.storage import find_calibration

    if Path(model).resolve().is_relative_to(out.resolve()):
        raise BadInput(
            f"{out}: the export would replace this folder, which holds the model; name another folder"
        )
    if optimization is not None and layout != "onnx":
        raise BadInput(f"--optimize {optimization}: only --layout onnx has it, not {layout}")
    if precision != "float32" and layout not in ("onnx", "openvino"):
        raise BadInput(
            f"--precision {precision}: only --layout onnx and --layout openvino have it, not {layout}"
        )
    match layout:
        case "sentence-transformers":
            check_sentence_transformers()
        case "onnx":
            check_onnx_packages("onnx", "onnx")
        case "openvino":
            check_openvino_packages()
    # eager is the one attention implementation that every backbone has
    reranker = LayerwiseReranker.from_pretrained(model, device="cpu", attention="eager")
    merge_lora(reranker)
    if layer not in reranker.exits:
        raise ValueError(f"{model}: layer {layer} has no head; exits are {describe_layers(reranker.exits)}")
    known = find_calibration(str(model)) or {}
    with atomic(out) as draft:
        draft.mkdir()
        match layout:
            case "huggingface":
                write_classifier(reranker, layer, draft)
            case "sentence-transformers":
                write_cross_encoder(reranker, layer, draft)
            case "onnx" | "openvino":
                write_graph(reranker, layer, draft, layout, precision == "int8", optimization)
            case "upstream":
                write_upstream(reranker, layer, draft)
        exits = [k for k in reranker.exits if k <= layer] if layout == "upstream" else [layer]
        kept = {name: known[name] for name in map(exit_name, exits) if name in known}
        with (draft / "README.md").open("a", encoding="utf-8") as readme:
            if kept:
                write_json(draft / CALIBRATION_FILE, calibration_record(kept))
                readme.write(f"\n## Probabilities\n\n{describe_calibration(kept)}\n")
            if note := describe_fused_exit(str(model), layer, reranker.fusion is not None):
                readme.write(f"\n## What is left out\n\n{note}\n")


def describe_exports(reranker: LayerwiseReranker) -> str:
    """Say in which layouts exits of a reranker can be written, and why not as `huggingface`. No file is left behind.

    Nothing is scored, and graphs are not tried.
    """
    from lwr.export.classifier import check_classifier
    from lwr.export.cross_encoder import check_cross_encoder
    from lwr.export.upstream import check_upstream

    said = []
    try:
        check_classifier(reranker)
        said.append("can be exported as huggingface")
    except Exception as error:  # whatever a model's class raises
        said.append(f"cannot be exported as huggingface ({first_line(error)})")
    with suppress(Exception):
        check_cross_encoder(reranker)
        said.append("can be exported as sentence-transformers")
    with suppress(ValueError):  # most are not Llamas
        check_upstream(reranker)
        said.append("can be exported as upstream")
    return "; ".join(said)
