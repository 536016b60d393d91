"""Turn queries and passages into token ids: by a template for decoders, by the tokenizer's pair format for encoders.

Query and passage are tokenised separately and joined as ids. So each distinct text is tokenised once, in however many
pairs it occurs.

Upstream: FlagEmbedding, finetune_for_layerwise/data.py (training lengths) and
inference/reranker/decoder_only/layerwise.py (inference lengths).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Self, cast

from transformers import PreTrainedTokenizerBase

from lwr.common.errors import BadInput, shorten
from lwr.common.progress import format_share
from lwr.common.texts import check_text
from lwr.config.evaluation import WindowPool, Windows
from lwr.config.model import PromptTemplate

UPSTREAM_INSTRUCTION = PromptTemplate().instruction
"""The instruction that FlagEmbedding's scripts write into every training line."""


@dataclass(frozen=True)
class Row:
    """A tokenised pair, unpadded.

    Attributes:
        input_ids: Its token ids.
        token_type_ids: Their types; None if the tokenizer has none.
        before_passage: The number of leading tokens that do not depend on the passage.
        after_passage: The number of tokens that follow the passage.
        is_cut: Whether the passage goes on behind what is read of it (or, without windows, fits exactly).
        further: The rows of the passage's further windows; this row has the first.
        pool: How the scores of all windows become one.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None
    before_passage: int = field(default=0, compare=False)
    after_passage: int = field(default=0, compare=False)
    is_cut: bool = field(default=False, compare=False)
    further: tuple[Row, ...] = ()
    pool: WindowPool = "max"

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def passage_tokens(self) -> int:
        """The number of tokens of the passage."""
        return len(self) - self.before_passage - self.after_passage

    @property
    def windows(self) -> tuple[Row, ...]:
        """The rows of all windows of the passage."""
        return (self, *self.further)

    @property
    def tokens_of_windows(self) -> int:
        """The number of tokens of all windows."""
        return sum(map(len, self.windows))


class PromptTooLong(ValueError):
    """The fixed text of a row leaves no token for query and passage, or too few for windows that overlap."""


def split_into_windows(
    passage: Sequence[int], length: int, windows: Windows, before: int = 0
) -> tuple[list[list[int]], bool]:
    """Split a passage into windows of at most `length` tokens; the last may be shorter.

    Args:
        passage: Its token ids.
        length: The largest number of tokens of a window.
        windows: The overlap of neighbouring windows, and their largest number.
        before: The number of leading tokens that every window begins with, such as those of `B: `.

    Returns:
        The windows, at least one, and whether the passage goes on behind the last.

    Raises:
        PromptTooLong: The overlap fills a window.
    """
    step = length - before - windows.overlap
    if step < 1:
        raise PromptTooLong(
            f"windows overlap by {windows.overlap} tokens, but a window has {max(0, length - before)} tokens of a "
            "passage beside query and prompt; lower the overlap, or train with a larger passage_max_len"
        )
    ends = range(length, len(passage) + step, step) if len(passage) > length else [length]
    start = list(passage[:before])
    split = [start + list(passage[end - length + before : end]) for end in ends[: windows.most]]
    return split, len(ends) > windows.most


@dataclass(frozen=True)
class LinePrompts:
    """What a line of training groups, or a request, puts in place of the template's; None: the template's is used.

    Attributes:
        instruction: The text for `{instruction}`.
        query: The text before the query.
        passage: The text before the passage.
    """

    instruction: str | None = None
    query: str | None = None
    passage: str | None = None

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> Self:
        """Read FlagEmbedding's fields `prompt`, `query_prompt` and `passage_prompt`.

        FlagEmbedding's scripts write its default instruction into every line, so that one does not replace the
        template's.
        """
        instruction = line.get("prompt")
        if instruction == UPSTREAM_INSTRUCTION:
            instruction = None
        return cls(instruction, line.get("query_prompt"), line.get("passage_prompt"))


@dataclass(frozen=True)
class Lengths:
    """The largest numbers of tokens of a query, of a passage, and of a complete row with the fixed text."""

    query: int
    passage: int
    row: int


@dataclass(frozen=True)
class Frame:
    """The fixed text around a query and a passage.

    Attributes:
        before: The token ids before the query.
        between: Those between query and passage.
        after: Those after the passage.
        types: The token types of the two sides; None if the tokenizer has none.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[int, int] | None

    @property
    def length(self) -> int:
        """The number of fixed tokens."""
        return len(self.before) + len(self.between) + len(self.after)

    @classmethod
    def from_template(
        cls, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, instruction: str
    ) -> Self:
        """Tokenise the fixed text of a template, piece by piece."""
        bos, pad = cast(int | None, tokenizer.bos_token_id), tokenizer.pad_token_id
        # as upstream: a bos that is also the pad token is left out
        start = [] if bos is None or bos == pad else [bos]

        def ids(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

        prefix, *pieces = template.written(instruction)
        after = [i for piece in pieces for i in ids(piece)]
        return cls(start + ids(prefix), ids(template.between), after, None)

    @classmethod
    def from_pair_format(cls, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Take the special tokens of a sample pair, which belong to neither of its sequences."""
        sample = tokenizer("a", "b")
        ids, types = sample["input_ids"], sample.get("token_type_ids")
        sides = sample.sequence_ids(0)  # 0: query, 1: passage, None: special token
        query, passage = sides.index(0), sides.index(1)
        query_end, passage_end = len(sides) - sides[::-1].index(0), len(sides) - sides[::-1].index(1)
        return cls(
            ids[:query],
            ids[query_end:passage],
            ids[passage_end:],
            (types[query], types[passage]) if types else None,
        )


class Prompt:
    """The way a reranker writes and tokenises a pair.

    Example:
        >>> prompt = Prompt(tokenizer, PromptTemplate(), query_max_len=32, passage_max_len=224)
        >>> prompt.rows([("read a csv file", "def read_csv(path): ...")])
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate | None,
        query_max_len: int = 32,
        passage_max_len: int = 224,
    ):
        """Set template and lengths.

        The two lengths have upstream's meaning in training. A long query may take a quarter of the passage's tokens,
        and a long passage half of the query's. The complete row, together with the tokens of the answer `Yes`, does
        not exceed their sum.

        Args:
            tokenizer: The tokenizer.
            template: The text around query and passage; None: the tokenizer's format of pairs (encoders).
            query_max_len: Tokens of a query.
            passage_max_len: Tokens of a passage.

        Raises:
            PromptTooLong: The fixed text leaves no token for query and passage.
        """
        self.tokenizer, self.template = tokenizer, template
        self.query_max_len, self.passage_max_len = query_max_len, passage_max_len
        answer = 0 if template is None else len(yes_ids(tokenizer))
        self.lengths = Lengths(
            query=query_max_len + passage_max_len // 4,
            passage=passage_max_len + query_max_len // 2,
            row=query_max_len + passage_max_len - answer,
        )
        self._free_tokens(self.frame(None))

    def use_inference_lengths(self, max_length: int) -> Self:
        """Use the lengths of upstream's `compute_score(max_length=...)`.

        As upstream does, add the tokens after the passage twice to the length of a row.

        Raises:
            PromptTooLong: The fixed text leaves no token for query and passage.
        """
        after = 0 if self.template is None else len(self.frame(None).after)
        self.lengths = Lengths(query=max_length * 3 // 4, passage=max_length, row=max_length + 2 * after)
        self._free_tokens(self.frame(None))
        return self

    def _free_tokens(self, frame: Frame) -> int:
        """Return the number of tokens of a row for query and passage. Raise PromptTooLong if there are none."""
        if self.lengths.row <= frame.length:
            raise PromptTooLong(
                f"rows of {self.lengths.row} tokens leave none for query and passage: the prompt itself takes "
                f"{frame.length}; raise passage_max_len"
            )
        return self.lengths.row - frame.length

    @lru_cache(maxsize=64)  # noqa: B019 - a prompt is kept as long as its model
    def frame(self, instruction: str | None) -> Frame:
        """Return the fixed text with an instruction; None: the template's."""
        if self.template is None:
            return Frame.from_pair_format(self.tokenizer)
        return Frame.from_template(self.tokenizer, self.template, instruction or self.template.instruction)

    def check_line(self, prompts: LinePrompts, where: str) -> None:
        """Raise BadInput if a line, at the place `where`, sets an instruction that the prompt has no place for."""
        if prompts.instruction and self.why_no_instruction:
            raise BadInput(
                f"{where}: field 'prompt' is {shorten(prompts.instruction)}, but the model reads no instruction "
                f"({self.why_no_instruction}); remove the field, or use query_prompt, which is written before the query"
            )

    @property
    def why_no_instruction(self) -> str | None:
        """Why an instruction has no place in a row; None: it has one."""
        if self.template is None:
            return "encoders read pairs without one"
        return None if self.template.has_instruction else "its template has no {instruction}"

    def with_instruction(self, instruction: str | None) -> LinePrompts:
        """Return what makes rows with an instruction instead of the template's; None: with the template's.

        Raises:
            BadInput: It is not a text, or empty, or the prompt has no place for it.
        """
        if instruction is None:
            return LinePrompts()
        if not check_text(instruction, "instruction"):
            raise BadInput(
                "instruction is empty; write one, or leave it out, so that the model's own is used"
            )
        if self.why_no_instruction:
            raise BadInput(
                f"instruction is {shorten(instruction)}, but the model reads none ({self.why_no_instruction}); "
                "leave it out"
            )
        return LinePrompts(instruction)

    def queries(self, texts: Iterable[str], before: str | None = None) -> dict[str, list[int]]:
        """Tokenise each distinct query, cut to `lengths.query`.

        Args:
            texts: The queries.
            before: Replaces what the template writes before a query; None: the template's.
        """
        pattern = "{query}" if self.template is None else self.template.query
        return self._tokenise(texts, pattern, "{query}", before, self.lengths.query)

    def passages(
        self, texts: Iterable[str], before: str | None = None, complete: bool = False
    ) -> dict[str, list[int]]:
        """Tokenise each distinct passage, cut to `lengths.passage` or `complete`; `before` as for `queries`."""
        return self._tokenise(
            texts, self._passage_pattern, "{passage}", before, None if complete else self.lengths.passage
        )

    @property
    def _passage_pattern(self) -> str:
        return "{passage}" if self.template is None else self.template.passage

    def _start_of_passages(self, before: str | None) -> list[int]:
        """Tokenise what is written before a passage; `before` as for `queries`."""
        if before is None:
            before = self._passage_pattern.partition("{passage}")[0]
        return self.tokenizer(before, add_special_tokens=False)["input_ids"] if before else []

    def _tokenise(
        self, texts: Iterable[str], pattern: str, placeholder: str, before: str | None, max_length: int | None
    ) -> dict[str, list[int]]:
        """Tokenise each distinct text in place of the placeholder in `pattern`; None: it is not cut."""
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        start = pattern.find(placeholder)
        before, pattern = pattern[:start] if before is None else before, pattern[start:]
        written = [before + pattern.replace(placeholder, text) for text in distinct]
        tokenised = self.tokenizer(
            written,
            add_special_tokens=False,
            truncation=max_length is not None,
            max_length=max_length,
            verbose=False,  # no warning of long texts, which windows read
        )
        return dict(zip(distinct, tokenised["input_ids"], strict=True))

    def row(self, query: list[int], passage: list[int], instruction: str | None = None) -> Row:
        """Join two tokenised texts. The passage is cut first, then the query; the fixed text is never cut."""
        frame = self.frame(instruction)
        free = self._free_tokens(frame)
        query = query[:free]
        first = frame.before + query + frame.between
        second = passage[: free - len(query)] + frame.after
        types = None
        if frame.types is not None:
            types = [frame.types[0]] * len(first) + [frame.types[1]] * len(second)
        passage_tokens = len(second) - len(frame.after)
        is_cut = len(first) + len(second) >= self.lengths.row or passage_tokens >= self.lengths.passage
        return Row(first + second, types, len(first), len(frame.after), is_cut)

    def _window_row(
        self, query: list[int], passage: list[int], prompts: LinePrompts, start: list[int], windows: Windows
    ) -> Row:
        """Join a query with each window of a complete passage.

        Args:
            query: The query.
            passage: The passage.
            prompts: The prompts of its line.
            start: The tokens before a passage, with which each window begins.
            windows: The windows.

        Raises:
            PromptTooLong: The overlap fills a window.
        """
        free = self._free_tokens(self.frame(prompts.instruction)) - len(query)
        same = [a == b for a, b in zip(start, passage, strict=False)]
        before = [*same, False].index(False)
        split, is_cut = split_into_windows(passage, min(self.lengths.passage, free), windows, before)
        first, *further = (self.row(query, window, prompts.instruction) for window in split)
        return replace(first, is_cut=is_cut, further=tuple(further), pool=windows.pool)

    def check_windows(self, windows: Windows, query: str = "", prompts: LinePrompts = LinePrompts()) -> None:
        """Raise PromptTooLong if the overlap would fill the windows of a passage beside a query."""
        self.rows([(query, "")], prompts, windows)

    def rows(
        self,
        pairs: Sequence[tuple[str, str]],
        prompts: LinePrompts = LinePrompts(),
        windows: Windows | None = None,
    ) -> list[Row]:
        """Tokenise (query, passage) pairs, as `group_rows` does with prompts that are those of all pairs."""
        groups = [(query, [passage], prompts) for query, passage in pairs]
        return [row for rows in self.group_rows(groups, windows) for row in rows]

    def count_cut(self, rows: Iterable[Row]) -> int:
        """Count the rows of which the passage was cut (see `Row.is_cut`)."""
        return sum(row.is_cut for row in rows)

    def describe_cut(self, cut: int, pairs: int, windows: Windows | None = None) -> str:
        """Say how many of some pairs `count_cut` has counted."""
        share = f"{cut:,} of {pairs:,} pairs ({format_share(cut, pairs)})"
        if cut == 0:
            return f"{share} are cut"
        if windows is not None:
            return (
                f"{share} have a passage of more than {windows.most} windows, the rest of which is not read"
            )
        return (
            f"{share} fill the {self.lengths.row} tokens of a row or the {self.lengths.passage} of a passage; the rest "
            "of the passage is not read"
        )

    def describe_cut_queries(self, queries: Iterable[tuple[str, LinePrompts]]) -> str | None:
        """Say how many of some queries fill `lengths.query`, so that their rest is not read; None: none does."""
        tokenised = _tokenise_by_prompt(self.queries, ((prompts.query, query) for query, prompts in queries))
        cut = sum(len(ids) >= self.lengths.query for ids in tokenised.values())
        if not cut:
            return None
        share = f"{cut:,} of {len(tokenised):,} queries ({format_share(cut, len(tokenised))})"
        return f"{share} fill the {self.lengths.query} tokens of a query; the rest of the query is not read"

    def group_rows(
        self, groups: Sequence[tuple[str, Sequence[str], LinePrompts]], windows: Windows | None = None
    ) -> list[list[Row]]:
        """Return a row per passage of each group: a query, its passages, and the prompts of its line.

        Each distinct text is tokenised once.

        Args:
            groups: The groups.
            windows: How passages that do not fit are split; None: they are cut.

        Raises:
            PromptTooLong: The overlap fills a window.
        """
        queries = _tokenise_by_prompt(self.queries, ((prompts.query, query) for query, _, prompts in groups))
        passages = _tokenise_by_prompt(
            partial(self.passages, complete=windows is not None),
            ((prompts.passage, text) for _, texts, prompts in groups for text in texts),
        )
        starts = {}
        if windows is not None:
            starts = {prompts.passage: self._start_of_passages(prompts.passage) for _, _, prompts in groups}

        def join(query: str, passage: str, prompts: LinePrompts) -> Row:
            query_ids, passage_ids = queries[prompts.query, query], passages[prompts.passage, passage]
            if windows is None:
                return self.row(query_ids, passage_ids, prompts.instruction)
            return self._window_row(query_ids, passage_ids, prompts, starts[prompts.passage], windows)

        return [[join(query, text, prompts) for text in texts] for query, texts, prompts in groups]


def _tokenise_by_prompt(
    tokenise: Callable[[Iterable[str], str | None], dict[str, list[int]]],
    texts: Iterable[tuple[str | None, str]],
) -> dict[tuple[str | None, str], list[int]]:
    """Return the token ids of pairs of what precedes a text, and the text."""
    by_prompt: dict[str | None, list[str]] = {}
    for before, text in texts:
        by_prompt.setdefault(before, []).append(text)
    return {
        (before, text): ids
        for before, same in by_prompt.items()
        for text, ids in tokenise(same, before).items()
    }


def yes_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of `Yes`, the answer that upstream trains for."""
    return tokenizer("Yes", add_special_tokens=False)["input_ids"]


def yes_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token of which the row in the vocabulary head initialises a relevance head: the last of `Yes`."""
    return yes_ids(tokenizer)[-1]
