"""Layout `sentence-transformers`: an exit as a modular CrossEncoder, which its versions from 5.4 on read.

Its modules are the backbone, a pooling, and a linear layer that writes the feature `scores`. They express an exit as it
is: whatever it pools, without an additional block, and for architectures of which transformers has no classifier.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import save_file

from lwr.common.errors import BadInput, missing_extra
from lwr.common.json_lines import write_json
from lwr.export.classifier import check_pair_tokenizer, check_scores, fit_pairs
from lwr.export.pair_tokenizer import PairTokenizer, write_pair_tokenizer
from lwr.export.readme import exit_readme
from lwr.export.truncate import build_backbone
from lwr.model.reranker import LayerwiseReranker

POOLING = {"first": "cls", "mean": "mean", "last": "lasttoken"}
"""Pooling of a reranker -> its name in sentence-transformers."""
POOLED = {"first": "of the first token", "mean": "the mean over all tokens", "last": "of the last token"}
"""Pooling of a reranker -> its name in the README.md."""
IDENTITY = "torch.nn.modules.linear.Identity"
TANH = "torch.nn.modules.activation.Tanh"


def check_sentence_transformers() -> None:
    """Check that a sentence-transformers is installed that reads modular CrossEncoders. Raises BadInput."""
    what = "layout sentence-transformers"
    try:
        installed = version("sentence-transformers")
    except PackageNotFoundError:
        raise missing_extra(what, "sentence-transformers", "sentence-transformers") from None
    if tuple(int(part) for part in installed.split(".")[:2]) < (5, 4):
        raise BadInput(
            f"{what} needs version 5.4 or later of sentence-transformers, and {installed} is installed: "
            "pip install 'lwr[sentence-transformers]'"
        )


def write_cross_encoder(reranker: LayerwiseReranker, layer: int, folder: Path) -> None:
    """Write exit `layer` as a modular CrossEncoder with tokenizer and README.md; its weights are float32.

    Raises:
        ValueError: The tokenizer cannot write the reranker's rows, or scores differ after loading.
    """
    backbone = build_backbone(reranker, layer)
    backbone.config.num_labels = 1  # sentence-transformers 5.4 reads the number of scores from here
    backbone.save_pretrained(folder)
    pair = write_pair_tokenizer(reranker.prompt, reranker.num_embeddings, folder)
    _write_modules(reranker, layer, folder)
    pairs = fit_pairs(reranker.prompt)
    scores = _score(folder, pair, pairs)
    score, difference = check_scores(reranker, layer, pairs, scores, "CrossEncoder of sentence-transformers")
    readme = exit_readme(
        "sentence_transformers",
        reranker,
        layer,
        pair,
        pairs[0],
        score,
        difference,
        library="sentence-transformers",
        pooling=POOLED[reranker.pooling],
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")


def check_cross_encoder(reranker: LayerwiseReranker) -> None:
    """Check that exits can be written as modular CrossEncoders, without writing or scoring any.

    Raises:
        ValueError: They cannot.
    """
    check_pair_tokenizer(reranker, build_backbone(reranker, reranker.exits[-1]).config)


def _write_modules(reranker: LayerwiseReranker, layer: int, folder: Path) -> None:
    """Write the pooling, the head, and the files that name the modules."""
    head, cap = reranker.head(layer).detach().float()[None], reranker.score_cap  # [1, hidden]
    pooled = {"embedding_dimension": head.shape[1], "pooling_mode": POOLING[reranker.pooling]}
    modules = [
        ("", "sentence_transformers.base.modules.transformer.Transformer"),
        ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
        ("2_Dense", "sentence_transformers.base.modules.dense.Dense"),
    ]
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooled | {"include_prompt": True})
    if cap is None:
        _write_dense(folder / "2_Dense", head, "sentence_embedding", IDENTITY)
    else:  # cap · tanh(score / cap)
        _write_dense(folder / "2_Dense", head / cap, "sentence_embedding", TANH)
        _write_dense(folder / "3_Dense", torch.full((1, 1), cap), "scores", IDENTITY)
        modules.append(("3_Dense", modules[-1][1]))
    write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": name} for i, (path, name) in enumerate(modules)],
    )
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "CrossEncoder", "activation_fn": IDENTITY, "prompts": {}, "default_prompt_name": None},
    )


def _write_dense(folder: Path, weight: torch.Tensor, reads: str, activation: str) -> None:
    """Write a linear layer without bias that writes the feature `scores` from the feature `reads`."""
    folder.mkdir()
    outputs, inputs = weight.shape
    write_json(
        folder / "config.json",
        {
            "in_features": inputs,
            "out_features": outputs,
            "bias": False,
            "activation_function": activation,
            "module_input_name": reads,
            "module_output_name": "scores",
        },
    )
    save_file({"linear.weight": weight.contiguous()}, folder / "model.safetensors")


def _score(folder: Path, pair: PairTokenizer, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Return the scores that sentence-transformers computes from the folder, float32 [pairs]."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    return model.predict(
        [pair.write(*texts) for texts in pairs], convert_to_tensor=True, show_progress_bar=False
    )
