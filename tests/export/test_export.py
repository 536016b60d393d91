"""Tests of exports, loaded as their users load them: scores, prompts, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import minicpm_checkpoint as minicpm
import pytest
import tiny
import torch
from exported import (
    LONG_PASSAGE,
    PAIRS,
    assert_scores_close,
    reranker_scores,
    save_reranker,
    save_reranker_and_base,
)
from huggingface_hub import ModelCardData
from jinja2 import UndefinedError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    pipeline,
)

from lwr.config.model import PromptTemplate
from lwr.export import classifier
from lwr.export.export import export
from lwr.export.readme import SAMPLE_PASSAGE, SAMPLE_QUERY, render
from lwr.model.reranker import LayerwiseReranker

CLASSIFIED = [name for name in tiny.DECODERS if name not in ("granite", "lfm2")]


@torch.no_grad()
def export_scores(folder: Path, pairs=PAIRS, **options) -> Tensor:
    """Return the scores that transformers computes from an export, float32 [pairs]."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager", trust_remote_code=False, **options
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    queries, passages = zip(*pairs, strict=True)
    features = tokenizer([*queries], [*passages], padding=True, truncation=True, return_tensors="pt")
    return model.eval()(**features).logits[:, 0].float()


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


# --- equal scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [name for name in CLASSIFIED if name != "qwen2"])
@pytest.mark.parametrize("layer", [3, 4])
def test_decoder_exit_scores_the_same(architecture, layer, tmp_path):
    model = save_reranker_and_base(tmp_path, architecture)
    export(model, layer, tmp_path / "out")
    assert read(tmp_path / "out" / "config.json")["num_hidden_layers"] == layer
    assert_scores_close(export_scores(tmp_path / "out"), reranker_scores(model, layer))


@pytest.mark.parametrize("architecture", list(tiny.ENCODERS))
@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("layer", [3, 4])
def test_encoder_exit_scores_the_same(architecture, pooling, layer, tmp_path):
    model = save_reranker_and_base(tmp_path, architecture, pooling=pooling, query_max_len=8)
    export(model, layer, tmp_path / "out")
    expected = reranker_scores(model, layer)
    assert expected.std() > 0.1, "the pairs must differ for this test to mean anything"
    torch.testing.assert_close(export_scores(tmp_path / "out"), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_encoder_in_half_precision_is_within_rounding(architecture, dtype, tmp_path):
    model = save_reranker_and_base(tmp_path, architecture, query_max_len=8)
    export(model, 4, tmp_path / "out")
    exact = reranker_scores(model, 4)
    rounding = (reranker_scores(model, 4, dtype=dtype) - exact).abs().max()
    assert (
        export_scores(tmp_path / "out", dtype=dtype) - exact
    ).abs().max() < 3 * rounding + 0.01 * exact.abs().max()


def test_minicpm_is_exported_as_llama(tmp_path):
    tensors = minicpm.weights() | minicpm.heads()
    folder = minicpm.write(tmp_path / "in", tensors, start_layer=2, head_multi=True, head_type="simple")
    export(folder, 3, tmp_path / "out")
    assert read(tmp_path / "out" / "config.json")["architectures"] == ["LlamaForSequenceClassification"]
    assert_scores_close(export_scores(tmp_path / "out"), reranker_scores(folder, 3))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "bert"])
def test_adapter_is_merged(architecture, tmp_path):
    model = save_reranker_and_base(tmp_path, architecture, lora=True, query_max_len=8)
    export(model, 3, tmp_path / "out")
    torch.testing.assert_close(
        export_scores(tmp_path / "out"), reranker_scores(model, 3), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("architecture", "passage_max_len"),
    [("llama", 96), ("bert", 24), ("bert", 8)],
)
def test_short_rows_are_exported(architecture, passage_max_len, tmp_path):
    lengths = {"query_max_len": passage_max_len // 3, "passage_max_len": passage_max_len}
    model = save_reranker_and_base(tmp_path, architecture, **lengths)
    export(model, 3, tmp_path / "out")
    prompt = LayerwiseReranker.from_pretrained(model, device="cpu").prompt
    pairs = classifier.fit_pairs(prompt)
    assert max(len(row) for row in prompt.rows(pairs)) <= prompt.lengths.row
    scores = reranker_scores(model, 3, pairs)
    torch.testing.assert_close(export_scores(tmp_path / "out", pairs), scores, atol=1e-4, rtol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"# {scores[0]:.4f}" in card
    assert repr(pairs[0][1]) in card


def test_row_without_space_for_a_pair_is_refused(tmp_path):
    model = save_reranker_and_base(tmp_path, "bert", query_max_len=1, passage_max_len=3)
    with pytest.raises(ValueError, match=r"rows of 4 tokens.*passage_max_len"):
        export(model, 3, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def multimodal(architecture: str):
    """Build a multimodal backbone with random weights, whose language model has the tiny shape."""
    text, options, vision = MULTIMODAL[architecture]
    text_config = AutoConfig.for_model(text, **tiny.SHAPE, **options).to_dict()
    config = AutoConfig.for_model(architecture, text_config=text_config, vision_config=vision)
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
MULTIMODAL = {
    "gemma3": ("gemma3_text", {"head_dim": 8}, VISION | {"model_type": "siglip_vision_model"}),
    "llava": ("llama", {}, VISION | {"model_type": "clip_vision_model"}),
    "qwen2_vl": (
        "qwen2_vl_text",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
        {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},
    ),
}


@pytest.mark.parametrize("architecture", ["gemma3", "llava"])
def test_language_model_of_a_multimodal_backbone_is_exported(architecture, tmp_path):
    model = save_reranker(tmp_path / "model", multimodal(architecture), tiny.tokenizer(encoder=False))
    export(model, 3, tmp_path / "out")
    config = read(tmp_path / "out" / "config.json")
    assert config["num_hidden_layers"] == 3
    assert "vision_config" not in config
    assert_scores_close(export_scores(tmp_path / "out"), reranker_scores(model, 3))


def test_multimodal_backbone_without_text_classifier_is_refused(tmp_path):
    model = save_reranker(tmp_path / "model", multimodal("qwen2_vl"), tiny.tokenizer(encoder=False))
    with pytest.raises(ValueError, match=r"qwen2_vl_text.* no sequence classifier"):
        export(model, 3, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shared_head_is_exported(tmp_path):
    model = save_reranker_and_base(tmp_path, "llama", shared_head=True)
    export(model, 2, tmp_path / "out")
    assert_scores_close(export_scores(tmp_path / "out"), reranker_scores(model, 2))


def save_with_own_norms(folder: Path, architecture: str, lora: bool = False) -> Path:
    """Save a reranker whose exits have norms of their own that differ."""
    model = save_reranker_and_base(folder, architecture, lora, own_norms=True)
    heads = load_file(model / "heads.safetensors")
    changed = {name: t + 0.3 * torch.randn_like(t) if ".norm." in name else t for name, t in heads.items()}
    save_file(changed, model / "heads.safetensors")
    return model


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "modernbert"])
def test_exits_are_exported_with_their_own_norms(architecture, lora, tmp_path):
    model = save_with_own_norms(tmp_path, architecture, lora)
    for layer in (2, 4):
        export(model, layer, tmp_path / "out")
        short = PAIRS[:2]  # longer rows of an encoder are cut elsewhere
        scores = export_scores(tmp_path / "out", short)
        torch.testing.assert_close(scores, reranker_scores(model, layer, short), atol=1e-4, rtol=1e-4)


def test_upstream_has_a_head_at_every_layer(tmp_path):
    model = save_reranker_and_base(tmp_path, "llama", head_every=2)
    with pytest.raises(ValueError, match="this reranker at layers 2, 4"):
        export(model, 4, tmp_path / "out", "upstream")
    with pytest.raises(ValueError, match="layer 3 has no head; exits are 2, 4"):
        export(model, 3, tmp_path / "out")


def test_upstream_has_no_own_norms(tmp_path):
    with pytest.raises(ValueError, match="norms of their own"):
        export(save_with_own_norms(tmp_path, "llama"), 4, tmp_path / "out", "upstream")


def test_pipeline_returns_the_raw_score(tmp_path):
    model = save_reranker_and_base(tmp_path, "llama")
    export(model, 4, tmp_path / "out")
    classify = pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    scores = [classify({"text": query, "text_pair": passage})["score"] for query, passage in PAIRS[:2]]
    assert scores == pytest.approx(reranker_scores(model, 4, PAIRS[:2]).tolist(), abs=1e-4)


# --- prompts -------------------------------------------------------------------------------------------


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Train a tokenizer like SentencePiece's: words carry the space before them, and each text gets one."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=tiny.VOCABULARY, special_tokens=special)
    bpe.train_from_iterator(
        [LONG_PASSAGE, "\n", PromptTemplate().instruction, "A: what B: it? is", SAMPLE_QUERY, SAMPLE_PASSAGE]
        * 3,
        trainer,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [
        (tiny.tokenizer(encoder=False), PromptTemplate()),
        (tiny.tokenizer(encoder=False), PromptTemplate(query="{query}", passage="{passage}", between="\n")),
        (
            tiny.tokenizer(encoder=False),
            PromptTemplate(prefix="Judge.\n", query="Q: {query}?", after=[" So?"]),
        ),
        (word_tokenizer(), PromptTemplate()),
    ],
    ids=["default", "bare", "with_tails", "sentencepiece"],
)
def test_exported_tokenizer_writes_the_prompt(tokenizer, template, tmp_path):
    model = save_reranker(tmp_path / "model", tiny.backbone("llama"), tokenizer, template=template)
    export(model, 3, tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = LayerwiseReranker.from_pretrained(model, device="cpu").prompt.rows(PAIRS)
    queries, passages = zip(*PAIRS, strict=True)
    assert loaded([*queries], [*passages], truncation=True)["input_ids"] == [row.input_ids for row in rows]
    assert "as they are" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("architecture", "template"),
    # the loader of Qwen2 rebuilds its tokenizer
    [("qwen2", PromptTemplate()), ("llama", PromptTemplate(passage="B:{passage}"))],
)
def test_readme_names_texts_where_tokenizer_cannot_write_the_prompt(architecture, template, tmp_path):
    model = save_reranker_and_base(tmp_path, architecture, template=template)
    export(model, 3, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"A query written as 'A: {{query}}' and a passage written as {template.passage!r}" in card
    written = [(f"A: {query}", template.passage.replace("{passage}", passage)) for query, passage in PAIRS]
    assert_scores_close(export_scores(tmp_path / "out", written), reranker_scores(model, 3))


def without_pad() -> PreTrainedTokenizerBase:
    pads = tiny.tokenizer(encoder=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(pads.backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def test_tokenizer_without_pad_token_pads_with_eos(tmp_path):
    model = save_reranker(tmp_path / "model", tiny.backbone("llama"), without_pad())
    export(model, 3, tmp_path / "out")
    assert read(tmp_path / "out" / "config.json")["pad_token_id"] == 2
    assert_scores_close(export_scores(tmp_path / "out"), reranker_scores(model, 3))


@pytest.mark.parametrize("layout", ["huggingface", "upstream"])
def test_pad_token_without_embedding_is_replaced_by_eos(layout, tmp_path):
    tokenizer = tiny.tokenizer_padding_beyond(tiny.VOCABULARY)
    model = save_reranker(tmp_path / "model", tiny.backbone("llama"), tokenizer)
    export(model, 3, tmp_path / "out", layout)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id == 2
    if layout == "huggingface":
        expected = reranker_scores(model, 3)
        assert_scores_close(export_scores(tmp_path / "out"), expected)


def test_rows_ending_in_the_pad_token_are_refused(tmp_path):
    template = PromptTemplate(after=["</s>"])
    model = save_reranker(tmp_path / "model", tiny.backbone("llama"), without_pad(), template=template)
    with pytest.raises(ValueError, match=r"rows end in '</s>'.*pad_token"):
        export(model, 3, tmp_path / "out")


# --- upstream's layout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shared_head", [False, True], ids=["per_exit", "shared"])
def test_upstream_layout_scores_the_same(shared_head, tmp_path):
    model = save_reranker_and_base(tmp_path, "llama", shared_head=shared_head)
    export(model, 3, tmp_path / "out", "upstream")
    again = LayerwiseReranker.from_pretrained(tmp_path / "out", device="cpu")
    assert again.exits == [2, 3]
    assert again.shared_head == shared_head
    for layer in (2, 3):
        assert_scores_close(reranker_scores(tmp_path / "out", layer), reranker_scores(model, layer))


def test_minicpm_round_trip_through_upstream_layout(tmp_path):
    tensors = minicpm.weights() | minicpm.heads()
    scaling = {"type": "linear", "factor": 2.5}
    folder = minicpm.write(
        tmp_path / "in", tensors, start_layer=2, head_multi=True, head_type="simple", rope_scaling=scaling
    )
    export(folder, 4, tmp_path / "out", "upstream")
    config = read(tmp_path / "out" / "config.json")
    assert (config["rope_theta"], config["rope_scaling"]) == (1000.0, scaling)
    assert_scores_close(reranker_scores(tmp_path / "out", 4), reranker_scores(folder, 4))


@pytest.mark.parametrize(
    ("architecture", "options", "reason"),
    [
        ("qwen3", {}, "not a qwen3"),
        ("llama", {"pooling": "mean"}, "reads the mean"),
        ("llama", {"template": PromptTemplate(query="Q: {query}")}, "another template"),
    ],
)
def test_reranker_that_upstream_cannot_express_is_refused(architecture, options, reason, tmp_path):
    model = save_reranker_and_base(tmp_path, architecture, **options)
    with pytest.raises(ValueError, match=f"FlagEmbedding can't read.*{reason}"):
        export(model, 3, tmp_path / "out", "upstream")
    assert not (tmp_path / "out").exists()


def test_upstream_readme_passes_another_instruction(tmp_path):
    model = save_reranker_and_base(tmp_path, "llama", template=PromptTemplate(instruction="Is B an answer?"))
    export(model, 3, tmp_path / "out", "upstream")
    assert "prompt='Is B an answer?'" in (tmp_path / "out" / "README.md").read_text()


# --- what is written, and what is refused --------------------------------------------------------------


@pytest.mark.parametrize("layout", ["huggingface", "upstream"])
def test_folder_has_only_safetensors_and_text(layout, tmp_path):
    export(save_reranker_and_base(tmp_path, "llama"), 3, tmp_path / "out", layout)
    suffixes = {file.suffix for file in (tmp_path / "out").rglob("*")}
    assert suffixes == {".safetensors", ".json", ".md"}
    assert "auto_map" not in read(tmp_path / "out" / "config.json")


def test_files_have_the_fields_of_transformers_4(tmp_path):
    model = save_reranker_and_base(tmp_path, "llama")
    export(model, 3, tmp_path / "out")
    config, settings = (read(tmp_path / "out" / f"{name}config.json") for name in ("", "tokenizer_"))
    assert config["rope_theta"] == 10000.0
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert isinstance(read(tmp_path / "out" / "tokenizer.json")["model"]["merges"][0], str)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_readme_has_a_score_to_compare_with(architecture, tmp_path):
    model = save_reranker_and_base(tmp_path, architecture)
    export(model, 3, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"# {reranker_scores(model, 3, [(SAMPLE_QUERY, SAMPLE_PASSAGE)]).item():.4f}" in card
    assert f"Layer 3 of 4 of a layerwise reranker that lwr trained on top of `{tmp_path}/base`" in card
    assert ("text-embeddings-inference has no reranker" in card) == (architecture == "llama")


def test_readme_does_not_write_1_tokens(tmp_path):
    lengths = {"query_max_len": 7, "passage_max_len": 3}  # 7 tokens for both texts, 6 for a passage
    model = save_reranker_and_base(tmp_path, "bert", **lengths)
    export(model, 3, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Pairs above 10 tokens" in card
    assert not re.search(r"\b1 tokens", card)


def test_template_with_a_missing_variable_is_an_error():
    with pytest.raises(UndefinedError, match="layer"):
        render("upstream", ModelCardData())


def test_existing_folder_is_replaced(tmp_path):
    model = save_reranker_and_base(tmp_path, "llama")
    export(model, 3, tmp_path / "out", "upstream")
    export(model, 2, tmp_path / "out")
    assert read(tmp_path / "out" / "config.json")["num_hidden_layers"] == 2


def test_layer_without_head_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"layer 1 has no head; exits are 2\.\.4"):
        export(save_reranker_and_base(tmp_path, "llama"), 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("architecture", ["granite", "lfm2"])
def test_architecture_without_classifier_is_refused(architecture, tmp_path):
    with pytest.raises(ValueError, match=f"{architecture}.* no sequence classifier"):
        export(save_reranker_and_base(tmp_path, architecture), 3, tmp_path / "out")


def test_decoder_with_mean_pooling_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"pooling is `mean`.* decoders"):
        export(save_reranker_and_base(tmp_path, "llama", pooling="mean"), 3, tmp_path / "out")


def test_encoder_with_unknown_head_is_refused(tmp_path):
    config = AutoConfig.for_model("roberta-prelayernorm", **tiny.SHAPE)
    model = save_reranker(
        tmp_path / "model", AutoModel.from_config(config).eval(), tiny.tokenizer(encoder=True)
    )
    with pytest.raises(ValueError, match=r"roberta-prelayernorm.*own-base-model"):
        export(model, 3, tmp_path / "out")


def test_export_with_different_scores_is_refused(tmp_path, monkeypatch):
    build = classifier.build_classifier

    def build_wrong_head(reranker, layer):
        model = build(reranker, layer)
        model.score.weight.data = model.score.weight + 0.1
        return model

    monkeypatch.setattr(classifier, "build_classifier", build_wrong_head)
    with pytest.raises(ValueError, match=r"LlamaForSequenceClassification.*scores differ"):
        export(save_reranker_and_base(tmp_path, "llama"), 3, tmp_path / "out")
    assert not (tmp_path / "out").exists()
