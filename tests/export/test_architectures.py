"""Tests that exits are exported exactly where the table of the docs says so, with the reranker's scores."""

from __future__ import annotations

import pytest
import tiny
import torch
from architectures import ARCHITECTURES, FIRST_ONLY, LAYERS, Architecture
from exported import assert_scores_close
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lwr.config.model import BaseModelConfig
from lwr.export.export import describe_exports, export
from lwr.model.base import try_base_model
from lwr.model.batching import pad
from lwr.model.loading import load_base_model
from lwr.model.reranker import LayerwiseReranker

FAST = set("llama gpt2 gpt_neo lfm2 bert roberta distilbert deberta deberta-v2 electra esm mpnet".split())
"""The architectures that each run of the tests exports: one of each kind. The others are slow together."""
PAIRS = [
    ("how is a string decoded?", "Decode a JSON document from a string, and return it."),
    ("who?", "Raise ValueError."),
    ("3 (of) 5", "def decode(s): return s"),
]
ARCHITECTURES_AND_POOLING = [
    pytest.param(
        each, pooling, id=f"{each.name}-{pooling}", marks=() if each.name in FAST else pytest.mark.slow
    )
    for each in ARCHITECTURES
    if each.refused is None
    for pooling in (("mean", "first") if each.encoder else ("last",))
]


@pytest.mark.parametrize(("architecture", "pooling"), ARCHITECTURES_AND_POOLING)
@torch.no_grad()
def test_exported_exactly_as_the_table_says(architecture: Architecture, pooling, tmp_path):
    base = BaseModelConfig(
        model=str(architecture.save(tmp_path / "base")), attention="eager", pooling=pooling
    )
    reason = architecture.not_exported
    if reason == FIRST_ONLY and pooling == "first":
        reason = None
    said = describe_exports(try_base_model(base).reranker)
    loaded = load_base_model(base)
    heads = {k: torch.randn(tiny.HIDDEN) for k in range(1, LAYERS + 1)}
    reranker = LayerwiseReranker(
        loaded.backbone, loaded.tokenizer, 1, pooling=pooling, initial_heads=heads, base=base
    ).eval()
    reranker.save_pretrained(tmp_path / "model")
    for layer in (LAYERS - 1, LAYERS):
        if reason is not None:
            assert reason in said
            with pytest.raises(ValueError, match=rf"{architecture.name}: .*{reason}"):
                export(tmp_path / "model", layer, tmp_path / "out")
            assert not (tmp_path / "out").exists()
            assert "can be exported as sentence-transformers" in said
            export(
                tmp_path / "model", layer, tmp_path / "modules", "sentence-transformers"
            )  # compares scores
            continue
        assert said.startswith("can be exported as huggingface; can be exported as sentence-transformers")
        export(tmp_path / "model", layer, tmp_path / "out")
        features = pad(reranker.prompt.rows(PAIRS), reranker.tokenizer, reranker.num_embeddings)
        (expected,) = reranker.encode(features, [layer])
        classifier = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "out", attn_implementation="eager"
        )
        if architecture.encoder:
            tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
            queries, passages = zip(*PAIRS, strict=True)
            features = tokenizer([*queries], [*passages], padding=True, return_tensors="pt")
        actual = classifier.eval()(**features).logits[:, 0]
        assert expected.std() > 1e-3, "the pairs must differ for this test to mean anything"
        # the LayerNorm of ModernBERT's head divides a little more for higher scores
        relative = 3e-5 if architecture.name == "modernbert" else 1e-5
        assert_scores_close(actual, expected, rtol=relative)
        assert all(
            tensor.isfinite().all() for tensor in load_file(tmp_path / "out/model.safetensors").values()
        )


def test_only_a_llama_can_be_exported_for_flag_embedding(tmp_path):
    says = {
        each.name: describe_exports(
            try_base_model(BaseModelConfig(model=str(each.save(tmp_path / each.name)))).reranker
        )
        for each in ARCHITECTURES
        if each.name in ("llama", "gpt2", "bert")
    }
    assert {name for name, said in says.items() if "upstream" in said} == {"llama"}
