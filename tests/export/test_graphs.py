"""Tests of exits as graphs for onnxruntime and OpenVINO: scores, approximations, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from exported import PAIRS, reranker_scores, save_reranker_and_base
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lwr.export.export import export
from lwr.export.graphs import onnx_graph, openvino_graph, write
from lwr.export.graphs.agreement import Agreement, check_agreement, measure_agreement, sample_pairs
from lwr.export.graphs.onnx_graph import quantize_onnx, run_onnx
from lwr.export.graphs.openvino_graph import run_openvino
from lwr.export.graphs.trace import ExitGraph
from lwr.export.pair_tokenizer import PairTokenizer
from lwr.model.batching import pad
from lwr.model.reranker import LayerwiseReranker

NEEDS_ONNX = "needs the extra: pip install 'lwr[onnx]'"
NEEDS_OPENVINO = "needs the extra: pip install 'lwr[openvino]'"


# --- what needs no runtime -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [("bert", "mean"), ("bert", "first"), ("llama", "last"), ("llama", "mean"), ("granite", "last")],
)
@torch.no_grad()
def test_traced_module_scores_as_the_reranker(architecture, pooling):
    backbone, encoder = tiny.backbone(architecture), architecture in tiny.ENCODERS
    heads = {k: torch.randn(tiny.HIDDEN) for k in range(1, tiny.LAYERS + 1)}
    reranker = LayerwiseReranker(
        backbone, tiny.tokenizer(encoder), 2, pooling=pooling, initial_heads=heads, score_cap=3.0
    ).eval()
    features = pad(reranker.prompt.rows(PAIRS), reranker.tokenizer, reranker.num_embeddings)
    names = [name for name in features if name != "labels"]
    graph = ExitGraph(backbone, reranker.head(tiny.LAYERS).detach(), pooling, 3.0, names)
    scores = graph(*(features[name] for name in names))[:, 0]
    torch.testing.assert_close(scores, reranker.encode(features, [tiny.LAYERS])[0], atol=1e-5, rtol=1e-5)


def test_sample_pairs_are_real_texts():
    pairs = sample_pairs()
    assert len(pairs) == 64
    assert len(set(pairs)) == 64
    assert all(query.endswith(".") or " " in query for query, _ in pairs)
    assert all(passage.startswith(("def ", "class ", "@")) for _, passage in pairs)


AGREEMENT = Agreement(score=1.0, difference=1e-5, largest=1.0, correlation=1.0, pairs=64)


def test_other_scores_are_refused():
    check_agreement(AGREEMENT, approximate=False, name="graph")
    check_agreement(dataclasses.replace(AGREEMENT, difference=9e-4, largest=10.0), False, "graph")
    for difference in (2e-4, float("nan")):
        with pytest.raises(ValueError, match=r"graph: its scores differ"):
            check_agreement(dataclasses.replace(AGREEMENT, difference=difference), False, "graph")


def test_another_order_is_refused():
    check_agreement(dataclasses.replace(AGREEMENT, difference=0.5, correlation=0.95), True, "graph")
    for correlation in (0.89, 0.0, float("nan")):
        with pytest.raises(ValueError, match=r"graph: .* rank correlation"):
            check_agreement(dataclasses.replace(AGREEMENT, correlation=correlation), True, "graph")


def plain_pair(reranker: LayerwiseReranker) -> PairTokenizer:
    return PairTokenizer(reranker.tokenizer, "{query}", "{passage}")


def test_constant_and_empty_scores_have_no_correlation(build_reranker):
    reranker = build_reranker().eval()

    def score(value: float, features) -> np.ndarray:
        return np.full(len(features["input_ids"]), value, dtype=np.float32)

    for value in (0.25, float("nan")):
        agreement = measure_agreement(reranker, 3, plain_pair(reranker), partial(score, value))
        with pytest.raises(ValueError, match="rank correlation"):
            check_agreement(agreement, approximate=True, name="graph")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization": "O2"}, "--optimize O2: only --layout onnx"),
        ({"optimization": "O2", "layout": "openvino"}, "--optimize O2: only --layout onnx"),
        ({"precision": "int8"}, "--precision int8: only --layout onnx and --layout openvino"),
        ({"precision": "int8", "layout": "sentence-transformers"}, "--precision int8"),
    ],
)
def test_option_of_another_layout_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "model", 3, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("layout", "module", "missing"),
    [
        ("onnx", onnx_graph, "onnxruntime"),
        ("openvino", onnx_graph, "onnxscript"),
        ("openvino", openvino_graph, "nncf"),
    ],
)
def test_missing_package_is_named(layout, module, missing, tmp_path, monkeypatch):
    for each in (onnx_graph, openvino_graph):
        monkeypatch.setattr(each, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(ValueError, match=rf"layout {layout} needs {missing}: pip install 'lwr\[{layout}\]'"):
        export(tmp_path / "model", 3, tmp_path / "out", layout)


def test_large_graph_is_not_quantised(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    monkeypatch.setattr(onnx_graph, "MAX_BYTES", 10)
    (tmp_path / "model.onnx").write_bytes(bytes(8))
    (tmp_path / "model.onnx.data").write_bytes(bytes(8))
    with pytest.raises(ValueError, match=r"--precision int8: the graph has"):
        quantize_onnx(tmp_path / "model.onnx", tmp_path / "out.onnx")


# --- graphs that run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Return rerankers by architecture: an encoder that pools the mean, and a decoder without a stock classifier."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    return {
        "bert": save_reranker_and_base(folder / "bert", "bert", pooling="mean"),
        "granite": save_reranker_and_base(folder / "granite", "granite"),
    }


@pytest.fixture(scope="module")
def trace_once(tmp_path_factory):
    """Return a `trace_exit` that traces each model once, because tracing takes most of an export's time."""
    folder, trace = tmp_path_factory.mktemp("traced"), write.trace_exit

    def trace_exit(reranker, layer, pair, file):
        kept = folder / f"{reranker.config.model_type}-{layer}.onnx"
        if not kept.exists():
            trace(reranker, layer, pair, kept)
        shutil.copy(kept, file)

    return trace_exit


def graph_scores(folder: Path, layout: str, pairs) -> torch.Tensor:
    """Return the scores that a runtime computes from an export, float32 [pairs]."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    queries, passages = zip(*pairs, strict=True)
    features = tokenizer([*queries], [*passages], padding=True, truncation=True, return_tensors="np")
    if layout == "onnx":
        return torch.tensor(run_onnx(folder / "onnx/model.onnx", features))
    return torch.tensor(run_openvino(folder / "openvino/openvino_model.xml", features))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "granite"])
@pytest.mark.parametrize(
    ("layout", "precision", "optimization", "atol"),
    [
        ("onnx", "float32", None, 1e-5),
        ("onnx", "float32", "O2", 1e-5),
        ("onnx", "float32", "O3", 2e-2),
        ("onnx", "int8", None, 0.15),
        ("onnx", "int8", "O2", 0.15),
        ("openvino", "float32", None, 1e-5),
        ("openvino", "int8", None, 0.15),
    ],
)
def test_graph_scores_as_the_reranker(
    layout, precision, optimization, atol, architecture, models, trace_once, tmp_path, monkeypatch
):
    pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    if layout == "openvino":
        pytest.importorskip("openvino", reason=NEEDS_OPENVINO)
    monkeypatch.setattr(write, "trace_exit", trace_once)
    export(models[architecture], 3, tmp_path / "out", layout, precision, optimization)
    for pairs in (PAIRS[:2], PAIRS[:1]):  # another number of rows and tokens than was traced
        expected = reranker_scores(models[architecture], 3, pairs)
        scores = graph_scores(tmp_path / "out", layout, pairs)
        rtol = 0.35 if precision == "int8" else 1e-5
        torch.testing.assert_close(scores, expected, atol=atol, rtol=rtol)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert ("in int8" in readme) == (precision == "int8")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def trace_stock_classifier(model: Path, folder: Path) -> PairTokenizer:
    """Export exit 3 as a stock classifier to `folder`, and write its graph to stock.onnx in it."""
    export(model, 3, folder)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    features = tokenizer(
        ["a query", "who?"], ["a passage of a few words", "no"], padding=True, return_tensors="pt"
    )

    class Logits(torch.nn.Module):
        def forward(self, *inputs):
            return classifier(**dict(zip(features, inputs, strict=True))).logits

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
    program.save(folder / "stock.onnx")
    return PairTokenizer(tokenizer, "{query}", "{passage}")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_int8_loses_the_scores_of_a_stock_head_but_not_those_of_a_graph(architecture, tmp_path):
    """A stock head adds its score to a constant (256 in ModernBERT's), and int8 rounds their sum to that constant."""
    pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    model = save_reranker_and_base(tmp_path, architecture, pooling="mean")
    reranker = LayerwiseReranker.from_pretrained(model, device="cpu")
    pair = trace_stock_classifier(model, tmp_path / "stock")
    stock, quantized = tmp_path / "stock/stock.onnx", tmp_path / "stock/int8.onnx"
    in_float32 = measure_agreement(reranker, 3, pair, partial(run_onnx, stock))
    check_agreement(in_float32, approximate=False, name="stock head")
    quantize_onnx(stock, quantized)
    in_int8 = measure_agreement(reranker, 3, pair, partial(run_onnx, quantized))
    assert in_int8.correlation == 0, "all scores of a query are equal"
    with pytest.raises(ValueError, match="rank correlation"):
        check_agreement(in_int8, approximate=True, name="stock head")

    export(model, 3, tmp_path / "graph", "onnx", "int8")
    graph = tmp_path / "graph/onnx/model.onnx"
    agreement = measure_agreement(reranker, 3, pair, partial(run_onnx, graph))
    check_agreement(agreement, approximate=True, name="graph")
