"""Format `huggingface`: an exit as the stock sequence classifier of its architecture.

The sequence classifier of a decoder reads the last token's final-normed state with a bias-free linear layer; that is
an exit, cut to its first blocks. For encoders, `lwr.export.encoder_head` writes the weights of the stock head. The
folder is loaded and scored before the export is accepted.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lwr.common.json_lines import write_json
from lwr.export.encoder_head import attach_head
from lwr.export.pair_tokenizer import PROBES, PairTokenizer, uncut_prompt, write_pair_tokenizer
from lwr.export.readme import SAMPLE_PASSAGE, SAMPLE_QUERY, exit_readme
from lwr.export.truncate import truncate_config, truncate_tensors, zeros_for_unread
from lwr.model.batching import pad
from lwr.model.prompt import Prompt
from lwr.model.reranker import LayerwiseReranker

TOLERANCE = 1e-4  # largest accepted difference to our score, for scores up to 1; relative for larger ones
CHECKED_PAIRS = [(SAMPLE_QUERY, SAMPLE_PASSAGE), *itertools.product(PROBES[:3], PROBES[:4])]
"""Pairs whose scores are compared, the README's sample first."""


def write_classifier(reranker: LayerwiseReranker, layer: int, folder: Path) -> None:
    """Write exit `layer` as a sequence classifier with tokenizer and README.md.

    Raises:
        ValueError: The exit cannot be written so, or its scores differ after loading.
    """
    classifier = build_classifier(reranker, layer)
    classifier.save_pretrained(folder)
    pair = write_pair_tokenizer(reranker.prompt, reranker.num_embeddings, folder)
    _complete_config(folder / "config.json", pair.tokenizer)
    # text-embeddings-inference reads the length to cut to from this file
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": reranker.prompt.lengths.row})
    pairs = fit_pairs(reranker.prompt)
    score, difference = _compare_scores(reranker, layer, folder, pair, pairs)
    has_extra_block = classifier.config.num_hidden_layers > layer
    readme = exit_readme(
        "classifier", reranker, layer, pair, pairs[0], score, difference, extra_block=has_extra_block
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")


def check_classifier(reranker: LayerwiseReranker) -> None:
    """Check that exits can be written as classifiers with their tokenizer, without writing or scoring any.

    Raises:
        ValueError: They cannot.
    """
    check_pair_tokenizer(reranker, build_classifier(reranker, reranker.exits[-1]).config)


def check_pair_tokenizer(reranker: LayerwiseReranker, config: PretrainedConfig) -> None:
    """Check that a tokenizer can write a reranker's pairs beside an export's config. Raises ValueError."""
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        write_pair_tokenizer(reranker.prompt, reranker.num_embeddings, Path(folder))


@torch.no_grad()
def build_classifier(reranker: LayerwiseReranker, layer: int) -> PreTrainedModel:
    """Build the stock `*ForSequenceClassification` of exit `layer`; unchanged tensors share their memory.

    Args:
        reranker: A reranker without an adapter (see `lwr.model.linear.lora.merge_lora`).
        layer: The exit.

    Raises:
        ValueError: Transformers has no such class for the backbone, it pools differently, or scores are capped.
    """
    if reranker.score_cap is not None:
        raise ValueError(
            f"scores are soft-capped at {reranker.score_cap}, which no stock classifier does; serve it with lwr"
        )
    causal = reranker.stack.causal
    if causal and reranker.pooling != "last":
        raise ValueError(
            f"pooling is `{reranker.pooling}`, but the sequence classifiers of decoders read the last token; "
            "only a reranker trained with `pooling: last` can be exported"
        )
    config = truncate_config(reranker.config, layer)
    config.num_labels = 1
    config.problem_type = "regression"  # pipelines then return the score unchanged
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    prefix = _without_weights(config).base_model_prefix
    state = {f"{prefix}.{name}": tensor for name, tensor in truncate_tensors(reranker, layer).items()}
    head = reranker.head(layer).detach()  # [hidden]
    if causal:
        state["score.weight"] = head[None].to(reranker.backbone.dtype)  # [1, hidden]
    else:
        stack = dataclasses.replace(reranker.stack, norm=reranker.norm(layer))
        attach_head(config, state, prefix, stack, head, reranker.pooling)
    model = _without_weights(config)
    state |= zeros_for_unread(model, f"{prefix}.", state)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """Build the classifier of a config on the meta device, where weights take no memory."""
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise ValueError(
            f"{config.model_type}: transformers has no sequence classifier of this architecture, so no other program "
            "could load the export; serve it with lwr"
        ) from None


def _complete_config(file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the padding token, and the rotary base under the names of transformers 4, which servers still read."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["pad_token_id"] = tokenizer.pad_token_id
    rope = config.get("rope_parameters") or {}
    # without `rope_theta` there is one base per kind of attention, which transformers 4 does not read
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    write_json(file, config)


def fit_pairs(prompt: Prompt) -> list[tuple[str, str]]:
    """Shorten CHECKED_PAIRS to what a row of `prompt` holds, because the classifier's tokenizer cuts pairs differently.

    Raises:
        ValueError: A row does not hold a pair of one character each.
    """
    uncut = uncut_prompt(prompt)
    return [_fit_pair(prompt, uncut, query, passage) for query, passage in CHECKED_PAIRS]


def _fit_pair(prompt: Prompt, uncut: Prompt, query: str, passage: str) -> tuple[str, str]:
    """Return the longest starts of a query and a passage, of about equally many characters, that are not cut."""
    for length in range(max(len(query), len(passage)), 0, -1):
        pair = (query[:length], passage[:length])
        if prompt.rows([pair]) == uncut.rows([pair]):
            return pair
    raise ValueError(
        f"rows of {prompt.lengths.row} tokens do not hold the prompt, a query and a passage, even of one character "
        "each; train with a higher passage_max_len"
    )


@torch.inference_mode()
def _compare_scores(
    reranker: LayerwiseReranker,
    layer: int,
    folder: Path,
    pair: PairTokenizer,
    pairs: Sequence[tuple[str, str]],
) -> tuple[float, float]:
    """Score pairs by the reranker and by the classifier in `folder`. As `check_scores`."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=reranker.backbone.dtype, trust_remote_code=False, use_safetensors=True
    )
    queries, passages = zip(*(pair.write(*texts) for texts in pairs), strict=True)
    features = pair.tokenizer(list(queries), list(passages), padding=True, return_tensors="pt")
    actual = model.eval()(**features).logits[:, 0].float()  # [pairs]
    return check_scores(reranker, layer, pairs, actual, type(model).__name__)


@torch.inference_mode()
def check_scores(
    reranker: LayerwiseReranker, layer: int, pairs: Sequence[tuple[str, str]], actual: Tensor, name: str
) -> tuple[float, float]:
    """Compare an export's scores with the reranker's.

    Args:
        reranker: The reranker that was exported.
        layer: The exit.
        pairs: Pairs that fit into a row.
        actual: The export's scores, float32 [pairs].
        name: What the message calls the export.

    Returns:
        The reranker's score of the first pair, and the largest difference between both.

    Raises:
        ValueError: The difference is above TOLERANCE.
    """
    features = pad(reranker.prompt.rows(pairs), reranker.prompt.tokenizer, reranker.num_embeddings)
    (expected,) = reranker.encode(features, [layer])  # [pairs]
    difference = (expected - actual).abs()
    if not (difference <= TOLERANCE * expected.abs().clamp(min=1)).all():
        raise ValueError(
            f"{name}: the export was loaded again, and its scores differ from the reranker's by up to "
            f"{difference.max():.2g}; serve this reranker with lwr"
        )
    return float(expected[0]), float(difference.max())
