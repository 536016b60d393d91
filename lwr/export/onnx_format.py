"""Format `onnx`: the sequence classifier of format `huggingface`, and its graph for onnxruntime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lwr.common.errors import missing_extra
from lwr.export.classifier import fit_pairs, write_classifier
from lwr.model.reranker import LayerwiseReranker


def check_packages() -> None:
    """Check that the packages of the extra `onnx` are installed. Raises BadInput."""
    if find_spec("onnxscript") is None:
        raise missing_extra("layout onnx", "onnxscript", "onnx")


def write_onnx(reranker: LayerwiseReranker, layer: int, folder: Path) -> None:
    """Write exit `layer` as a sequence classifier, and its graph in onnx/model.onnx, as sentence-transformers reads it.

    The graph's inputs are those of the tokenizer, int64 [batch, tokens]; its output is `logits`, float32 [batch, 1].

    Raises:
        ValueError: The classifier cannot be written.
    """
    write_classifier(reranker, layer, folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    queries, passages = zip(*fit_pairs(reranker.prompt)[:2], strict=True)
    features = tokenizer(list(queries), list(passages), padding=True, return_tensors="pt")

    class Logits(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return model(**dict(zip(features, inputs, strict=True))).logits

    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=2)}
    program = torch.onnx.export(
        Logits().eval(),
        tuple(features.values()),
        dynamo=True,
        verbose=False,
        input_names=list(features),
        output_names=["logits"],
        dynamic_shapes=(tuple(sizes for _ in features),),
    )
    assert program is not None  # as dynamo=True returns a program
    (folder / "onnx").mkdir()
    program.save(folder / "onnx" / "model.onnx")
