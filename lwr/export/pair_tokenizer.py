"""A tokenizer that writes a reranker's rows from a query and a passage, for loaders that do not know its template.

A fast tokenizer's post-processor joins the ids of a pair: fixed ids, the query's, fixed ids, the passage's, fixed ids.
`lwr.model.prompt` writes rows in the same way, with one difference: it tokenises `A: {query}` as one string, so that
the query's first word is tokenised together with the space before it. Here a normaliser writes the space before each
text, and `A:` becomes part of the fixed ids. Whether that yields the same ids depends on the tokenizer, so it is tested
on PROBES, after loading (transformers 5 rebuilds the tokenizer of a Qwen2 without our normaliser). Where it does not,
callers have to write `A: ` themselves, and the fixed ids are those of `lwr.model.prompt`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lwr.common.json_lines import write_json
from lwr.config.model import PromptTemplate
from lwr.model.prompt import Prompt, Row

PROBES = [
    "what is it?",
    "Deep learning, since 2012.",
    "3 of 5 cells",
    "(CD8+) T-cells",
    "  two  spaces ",
    "\na line\n",
    "'quoted'",
    "naïve Übung",
    "日本語",
    "🙂 yes",
    "a\tb",
    "...",
]
"""Texts whose starts and ends cover the cases that tokenizers treat differently."""


@dataclass(frozen=True)
class PairTokenizer:
    """A tokenizer that writes the reranker's row of a pair, and the form in which it takes the pair's texts."""

    tokenizer: PreTrainedTokenizerBase
    query: str  # "{query}", or the template's own text where the tokenizer cannot write that itself
    passage: str

    def write(self, query: str, passage: str) -> tuple[str, str]:
        """Return the two texts to pass to the tokenizer."""
        return self.query.replace("{query}", query), self.passage.replace("{passage}", passage)


@dataclass(frozen=True)
class TemplateLayout:
    """A division of a template between fixed ids, a normaliser's prefix of both texts, and the callers' texts."""

    before: list[int]
    between: list[int]
    after: list[int]
    prefix: str
    query: str = "{query}"
    passage: str = "{passage}"


def write_pair_tokenizer(prompt: Prompt, num_embeddings: int, folder: Path) -> PairTokenizer:
    """Write a tokenizer whose pairs are the rows of `prompt`.

    Rows are equal for texts that are not empty and contain no special token. A pair that is too long is cut at the
    passage's end, as in training, while the passage is the longer of the two.

    Args:
        prompt: The reranker's prompt.
        num_embeddings: The number of token ids that the backbone has embeddings of.
        folder: Folder to write to. Its config.json must exist, because loaders read the tokenizer's class from it.

    Raises:
        ValueError: The tokenizer is not a fast one or has no token for padding, or no layout yields the same rows.
    """
    template = prompt.template
    if template is None:  # an encoder's tokenizer has a pair format
        candidates = [(_copy_pipeline(prompt), "{query}", "{passage}")]
    else:
        candidates = [
            (_build_pipeline(prompt, layout), layout.query, layout.passage)
            for layout in _layouts(prompt, template)
        ]
    for pipeline, query, passage in candidates:
        _save(prompt, pipeline, num_embeddings, folder)
        pair = PairTokenizer(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), query, passage)
        if _writes_same_rows(prompt, pair):
            return pair
    raise ValueError(
        f"{type(prompt.tokenizer).__name__}: loaded from an export, it does not write pairs as the reranker read them "
        "in training; export with `--layout upstream`, or score with lwr"
    )


def write_plain_tokenizer(prompt: Prompt, num_embeddings: int, folder: Path) -> PreTrainedTokenizerFast:
    """Write the base model's tokenizer with a padding token. Raises ValueError as `write_pair_tokenizer` does."""
    return _save(prompt, _copy_pipeline(prompt), num_embeddings, folder)


def uncut_prompt(prompt: Prompt) -> Prompt:
    """Return a prompt that writes the same rows, but cuts none of an ordinary length."""
    return Prompt(prompt.tokenizer, prompt.template, 4096, 4096)


def _layouts(prompt: Prompt, template: PromptTemplate) -> list[TemplateLayout]:
    """List the possible divisions of a template, the most convenient for callers first."""
    frame, tokenizer = prompt.frame(None), prompt.tokenizer

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    query_lead, _, query_tail = template.query.partition("{query}")
    passage_lead, _, passage_tail = template.passage.partition("{passage}")
    layouts = []
    # A space that ends both leads is moved to the texts: a normaliser writes it (prefix " "), or SentencePiece does.
    for ending, prefix in ((" ", " "), (" ", ""), ("", "")):
        if query_lead.endswith(ending) and passage_lead.endswith(ending):
            before = frame.before + ids(query_lead.removesuffix(ending))
            between = ids(query_tail) + frame.between + ids(passage_lead.removesuffix(ending))
            layouts.append(TemplateLayout(before, between, ids(passage_tail) + frame.after, prefix))
    by_callers = TemplateLayout(
        frame.before, frame.between, frame.after, "", template.query, template.passage
    )
    return [*layouts, by_callers]


def _build_pipeline(prompt: Prompt, layout: TemplateLayout) -> Tokenizer:
    """Build the tokenizer's pipeline with a layout's normaliser and fixed ids."""
    pipeline = _copy_pipeline(prompt)
    if layout.prefix:
        own = [pipeline.normalizer] if pipeline.normalizer else []
        pipeline.normalizer = normalizers.Sequence([normalizers.Prepend(layout.prefix), *own])
    fixed = {"<before>": layout.before, "<between>": layout.between, "<after>": layout.after}
    parts = ["<before>", "$A", "<between>", "$B", "<after>"]
    pipeline.post_processor = processors.TemplateProcessing(
        single="$A",
        pair=" ".join(part for part in parts if fixed.get(part, True)),
        special_tokens=[
            {"id": name, "ids": ids, "tokens": [pipeline.id_to_token(i) for i in ids]}
            for name, ids in fixed.items()
            if ids
        ],
    )
    return pipeline


def _copy_pipeline(prompt: Prompt) -> Tokenizer:
    """Copy the tokenizer's pipeline, without truncation and padding."""
    if not isinstance(prompt.tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"{type(prompt.tokenizer).__name__} is not a fast tokenizer, and an export needs its tokenizer.json; "
            "save the base model with a fast one"
        )
    pipeline = Tokenizer.from_str(prompt.tokenizer.backend_tokenizer.to_str())
    pipeline.no_truncation()  # set by the last call
    pipeline.no_padding()
    return pipeline


def _save(prompt: Prompt, pipeline: Tokenizer, num_embeddings: int, folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = prompt.tokenizer
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=pipeline,
        **named | {"pad_token": _pad_token(prompt, num_embeddings)},
        padding_side="right",
        truncation_side="right",
        model_max_length=prompt.lengths.row,
        model_input_names=tokenizer.model_input_names,
    )
    fast.save_pretrained(folder)
    _write_for_transformers_4(folder)
    return fast


def _write_for_transformers_4(folder: Path) -> None:
    """Rename the class and rewrite the merges as transformers 4 reads them; transformers 5 reads both forms.

    FlagEmbedding and some servers need transformers 4.
    """
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # where transformers 5 writes TokenizersBackend
    write_json(file, settings)

    file = folder / "tokenizer.json"
    pipeline = json.loads(file.read_text(encoding="utf-8"))
    merges = pipeline["model"].get("merges", [])
    if merges and not any(" " in token for merge in merges for token in merge):
        pipeline["model"]["merges"] = [" ".join(merge) for merge in merges]
        write_json(file, pipeline)


def _pad_token(prompt: Prompt, num_embeddings: int) -> str:
    """Return the token for padding: the pad token, or the eos token where that is missing or has no embedding.

    Raises:
        ValueError: There is none, or rows end in it: loaders take the last token that is not padding for a row's last.
    """
    tokenizer = prompt.tokenizer
    tokens = [token for token in (tokenizer.pad_token, tokenizer.eos_token) if isinstance(token, str)]
    vocabulary = tokenizer.get_vocab()
    pad = next((token for token in tokens if vocabulary.get(token, num_embeddings) < num_embeddings), None)
    if pad is None:
        raise ValueError(
            "the tokenizer has no pad and no eos token with an embedding, and batches need one; give it a pad_token"
        )
    if prompt.template and prompt.frame(None).after[-1:] == [tokenizer.convert_tokens_to_ids(pad)]:
        raise ValueError(
            f"rows end in {pad!r}, which is also the padding token, so other loaders would read the token before it; "
            "give the tokenizer a pad_token of its own"
        )
    return pad


def _writes_same_rows(prompt: Prompt, pair: PairTokenizer) -> bool:
    """Compare the rows of all pairs of PROBES."""
    pairs = [(query, passage) for query in PROBES for passage in PROBES]
    queries, passages = zip(*(pair.write(*texts) for texts in pairs), strict=True)
    # none is scored, so one above the row limit is no reason to warn
    written = pair.tokenizer(list(queries), list(passages), verbose=False)
    types = written.get("token_type_ids", [None] * len(pairs))
    return uncut_prompt(prompt).rows(pairs) == [
        Row(*row) for row in zip(written["input_ids"], types, strict=True)
    ]
