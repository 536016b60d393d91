"""Query + passage -> token ids: a template for decoders, the tokenizer's own pair format for encoders.

Upstream: FlagEmbedding, finetune_for_layerwise/data.py (training lengths) and
inference/reranker/decoder_only/layerwise.py (inference lengths). Texts are tokenised apart and joined as ids,
so each distinct text is tokenised once however many pairs it stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from lwr.config.model import PromptTemplate

UPSTREAM_INSTRUCTION = PromptTemplate().instruction


@dataclass(frozen=True)
class Row:
    """One pair as the backbone reads it, unpadded."""

    input_ids: list[int]
    token_type_ids: list[int] | None  # None where the tokenizer has no types
    before_passage: int = field(default=0, compare=False)  # tokens that don't depend on the passage

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Lengths:
    """Token limits of a query, of a passage, and of the whole row with the fixed text around them."""

    query: int
    passage: int
    row: int


@dataclass(frozen=True)
class Frame:
    """The fixed ids around a query and a passage, and the token type of either side."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[int, int] | None

    @classmethod
    def of_template(
        cls, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, instruction: str
    ) -> Self:
        bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
        start = [] if bos is None or bos == pad else [bos]  # upstream's rule: a bos that pads starts nothing

        def ids(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

        after = [i for piece in template.after for i in ids(piece.replace("{instruction}", instruction))]
        return cls(start + ids(template.prefix), ids(template.between), after, None)

    @classmethod
    def of_pair(cls, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Read off a sample pair: special tokens belong to neither sequence."""
        sample = tokenizer("a", "b")
        ids, side, types = sample["input_ids"], sample.sequence_ids(0), sample.get("token_type_ids")
        query, passage = side.index(0), side.index(1)
        query_end, passage_end = len(side) - side[::-1].index(0), len(side) - side[::-1].index(1)
        return cls(
            ids[:query],
            ids[query_end:passage],
            ids[passage_end:],
            (types[query], types[passage]) if types else None,
        )


class Prompt:
    """How a reranker writes a pair. `template` None: the tokenizer's pair format (encoders)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate | None,
        query_max_len: int = 32,
        passage_max_len: int = 224,
    ):
        """query_max_len, passage_max_len: tokens, with upstream's training meaning: a long query may lend a
        quarter of the passage's tokens and a long passage half of the query's; the whole row, with the tokens
        that would answer `Yes`, stays within the sum.

        Raises ValueError where the fixed text alone fills the pair.
        """
        self.tokenizer, self.template = tokenizer, template
        self.query_max_len, self.passage_max_len = query_max_len, passage_max_len
        q, p = query_max_len, passage_max_len
        answer = 0 if template is None else len(yes_ids(tokenizer))
        self.lengths = Lengths(q + p // 4, p + q // 2, q + p - answer)
        self._room(self.frame(None))

    def use_inference_lengths(self, max_length: int) -> Self:
        """Upstream's lengths of `compute_score(max_length=...)`: what stands after the passage comes on top, twice."""
        after = 0 if self.template is None else len(self.frame(None).after)
        self.lengths = Lengths(max_length * 3 // 4, max_length, max_length + 2 * after)
        self._room(self.frame(None))
        return self

    def _room(self, frame: Frame) -> int:
        """Tokens left for query and passage. Raises ValueError where there are none."""
        fixed = len(frame.before) + len(frame.between) + len(frame.after)
        if self.lengths.row <= fixed:
            raise ValueError(
                f"rows of {self.lengths.row} tokens leave no room for query and passage: the prompt itself takes "
                f"{fixed}; raise passage_max_len"
            )
        return self.lengths.row - fixed

    @lru_cache(maxsize=64)  # noqa: B019 - a prompt lives as long as its model
    def frame(self, instruction: str | None) -> Frame:
        """instruction: None takes the template's."""
        if self.template is None:
            return Frame.of_pair(self.tokenizer)
        return Frame.of_template(self.tokenizer, self.template, instruction or self.template.instruction)

    def queries(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Token ids of each distinct query, cut to `lengths.query`."""
        form = self.template.query if self.template else "{query}"
        return self._tokenise(texts, lambda text: form.replace("{query}", text), self.lengths.query)

    def passages(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Token ids of each distinct passage, cut to `lengths.passage`."""
        form = self.template.passage if self.template else "{passage}"
        return self._tokenise(texts, lambda text: form.replace("{passage}", text), self.lengths.passage)

    def _tokenise(
        self, texts: Iterable[str], write: Callable[[str], str], limit: int
    ) -> dict[str, list[int]]:
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        written = [write(text) for text in distinct]
        ids = self.tokenizer(written, add_special_tokens=False, truncation=True, max_length=limit)[
            "input_ids"
        ]
        return dict(zip(distinct, ids, strict=True))

    def row(self, query: list[int], passage: list[int], instruction: str | None = None) -> Row:
        """The pair of two tokenised texts; the passage is cut first, then the query, the fixed text never."""
        frame = self.frame(instruction)
        room = self._room(frame)
        query = query[:room]
        first = frame.before + query + frame.between
        second = passage[: room - len(query)] + frame.after
        if frame.types is None:
            return Row(first + second, None, len(first))
        types = [frame.types[0]] * len(first) + [frame.types[1]] * len(second)
        return Row(first + second, types, len(first))

    def rows(self, pairs: Sequence[tuple[str, str]], instruction: str | None = None) -> list[Row]:
        queries = self.queries(query for query, _ in pairs)
        passages = self.passages(passage for _, passage in pairs)
        return [self.row(queries[query], passages[passage], instruction) for query, passage in pairs]


def instruction_of(line: dict[str, Any]) -> str | None:
    """Return the instruction that a training line sets itself, or None where the template's applies.

    FlagEmbedding's scripts write its default instruction into every line, so that one does not replace the template's.
    """
    instruction = line.get("prompt")
    return None if instruction == UPSTREAM_INSTRUCTION else instruction


def yes_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer("Yes", add_special_tokens=False)["input_ids"]


def yes_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token whose row of the vocabulary head starts a relevance head: upstream takes the last of `Yes`."""
    return yes_ids(tokenizer)[-1]
