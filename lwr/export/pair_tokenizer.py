"""A tokenizer that writes a reranker's rows when it is given a query and a passage, for loaders that know no template.

Of a pair, a fast tokenizer's post-processor joins ids: fixed ones, the query's, fixed ones, the passage's, fixed ones.
That is how `lwr.model.prompt` writes a row, but for one thing: there `A: {query}` is tokenised as one string, and the
query's first word with the space before it. So the space goes to the texts (a normaliser puts it there) and `A:` to
the fixed ids. Whether that gives the same ids is for each tokenizer to show, on PROBES, loaded as others will load it
(transformers 5 rebuilds that of a Qwen2, without our normaliser). Where it doesn't, the caller writes `A: ` himself,
and the rest is fixed ids as before: that is `lwr.model.prompt` to the letter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lwr.common.json_lines import write_json
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
"""Texts that start and end in every way that matters to a tokenizer."""


@dataclass(frozen=True)
class PairTokenizer:
    """`tokenizer(query, passage)` gives a row of the reranker, with `query` and `passage` written as said here."""

    tokenizer: PreTrainedTokenizerBase
    query: str  # "{query}", or the template's own text where the tokenizer can't write that itself
    passage: str

    def write(self, query: str, passage: str) -> tuple[str, str]:
        return self.query.replace("{query}", query), self.passage.replace("{passage}", passage)


@dataclass(frozen=True)
class _Way:
    """Fixed ids of a pair, what a normaliser puts before either text, and the texts that callers write."""

    before: list[int]
    between: list[int]
    after: list[int]
    space: str
    query: str = "{query}"
    passage: str = "{passage}"


def write_pair_tokenizer(prompt: Prompt, folder: Path) -> PairTokenizer:
    """Write the tokenizer to `folder`, whose config.json is there already and tells loaders which class to take.

    Rows are equal for texts that are not empty and name no special token. A pair that is too long is cut at the
    passage's end, as ours, while the passage stays the longer of the two.
    Raises ValueError where the tokenizer is not a fast one, or has no token to pad with.
    """
    if prompt.template is None:
        candidates = [(_inner(prompt), "{query}", "{passage}")]  # an encoder's has a pair format
    else:
        candidates = [(_joined(prompt, way), way.query, way.passage) for way in _ways(prompt)]
    for inner, query, passage in candidates:
        _save(prompt, inner, folder)
        pair = PairTokenizer(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), query, passage)
        if _writes_rows_of(prompt, pair):
            return pair
    raise ValueError(
        f"{type(prompt.tokenizer).__name__}: loaded from an export, it does not write pairs as the reranker read them "
        "in training; export with `--layout upstream`, or score with lwr"
    )


def write_plain_tokenizer(prompt: Prompt, folder: Path) -> PreTrainedTokenizerFast:
    """Write the base model's tokenizer with a pad token. Raises ValueError as `write_pair_tokenizer` does."""
    return _save(prompt, _inner(prompt), folder)


def _ways(prompt: Prompt) -> list[_Way]:
    template, frame, tokenizer = prompt.template, prompt.frame(None), prompt.tokenizer

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    query_lead, _, query_tail = template.query.partition("{query}")
    passage_lead, _, passage_tail = template.passage.partition("{passage}")
    ways = []
    # what both leads end in goes to the texts: put there by a normaliser, or (SentencePiece) by the tokenizer anyway
    for ending, space in ((" ", " "), (" ", ""), ("", "")):
        if query_lead.endswith(ending) and passage_lead.endswith(ending):
            before = frame.before + ids(query_lead.removesuffix(ending))
            between = ids(query_tail) + frame.between + ids(passage_lead.removesuffix(ending))
            ways.append(_Way(before, between, ids(passage_tail) + frame.after, space))
    return [*ways, _Way(frame.before, frame.between, frame.after, "", template.query, template.passage)]


def _joined(prompt: Prompt, way: _Way) -> Tokenizer:
    inner = _inner(prompt)
    if way.space:
        own = [inner.normalizer] if inner.normalizer else []
        inner.normalizer = normalizers.Sequence([normalizers.Prepend(way.space), *own])
    fixed = {"<before>": way.before, "<between>": way.between, "<after>": way.after}
    parts = ["<before>", "$A", "<between>", "$B", "<after>"]
    inner.post_processor = processors.TemplateProcessing(
        single="$A",
        pair=" ".join(part for part in parts if fixed.get(part, True)),
        special_tokens=[
            {"id": name, "ids": ids, "tokens": [inner.id_to_token(i) for i in ids]}
            for name, ids in fixed.items()
            if ids
        ],
    )
    return inner


def _inner(prompt: Prompt) -> Tokenizer:
    """A copy of the tokenizer's own pipeline."""
    if not isinstance(prompt.tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"{type(prompt.tokenizer).__name__} is no fast tokenizer, and an export needs its tokenizer.json; "
            "save the base model with a fast one"
        )
    inner = Tokenizer.from_str(prompt.tokenizer.backend_tokenizer.to_str())
    inner.no_truncation()  # left from the last call
    inner.no_padding()
    return inner


def _save(prompt: Prompt, inner: Tokenizer, folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = prompt.tokenizer
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **named | {"pad_token": _pad_token(prompt)},
        padding_side="right",
        truncation_side="right",
        model_max_length=prompt.lengths.row,
        model_input_names=tokenizer.model_input_names,
    )
    fast.save_pretrained(folder)
    _write_for_transformers_4(folder)
    return fast


def _write_for_transformers_4(folder: Path) -> None:
    """Older versions, which FlagEmbedding and some servers need, know another class name and another way to write
    merges; newer ones know both."""
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


def _pad_token(prompt: Prompt) -> str:
    """Loaders find a row's last token as the last that does not pad: the row must not end in it."""
    tokenizer = prompt.tokenizer
    pad = tokenizer.pad_token or tokenizer.eos_token
    if pad is None:
        raise ValueError(
            "the tokenizer has no pad and no eos token, and batches need one; give it a pad_token"
        )
    if prompt.template and prompt.frame(None).after[-1:] == [tokenizer.convert_tokens_to_ids(pad)]:
        raise ValueError(
            f"rows end in {pad!r}, which pads too, and other loaders would read the token before it; "
            "give the tokenizer a pad_token of its own"
        )
    return pad


def _writes_rows_of(prompt: Prompt, pair: PairTokenizer) -> bool:
    pairs = [(query, passage) for query in PROBES for passage in PROBES]
    written = pair.tokenizer([pair.write(query, passage) for query, passage in pairs])
    types = written.get("token_type_ids", [None] * len(pairs))
    uncut = Prompt(prompt.tokenizer, prompt.template, 4096, 4096)
    return uncut.rows(pairs) == [Row(*row) for row in zip(written["input_ids"], types, strict=True)]
