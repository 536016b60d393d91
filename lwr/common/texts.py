"""Check the texts that Python callers and clients of the server give: queries, documents and pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from lwr.common.errors import shorten
from lwr.common.json_lines import is_utf8


def with_title(title: str, text: str) -> str:
    """Return a passage's title and text, as they are searched and reranked."""
    return f"{title} {text}" if title else text


def check_documents(documents: Iterable[Any]) -> list[str]:
    """Return the texts of documents in their order.

    Args:
        documents: Texts, or mappings with `text` and optionally `title`; a list, tuple, generator, array or Series.

    Raises:
        ValueError: It is not a sequence of these; the message names the first wrong one.
    """
    return [_text_of(entry, f"documents[{i}]") for i, entry in enumerate(_entries(documents, "documents"))]


def check_pairs(pairs: Iterable[Any]) -> list[tuple[str, str]]:
    """Return (query, passage) pairs in their order.

    Args:
        pairs: Pairs of a query and a document, as `check_documents` takes it; or one pair.

    Raises:
        ValueError: It is not a sequence of these; the message names the first wrong one.
    """
    entries = _entries(pairs, "pairs")
    if is_single_pair(entries):
        entries = [entries]
    return [_pair_of(entry, f"pairs[{i}]") for i, entry in enumerate(entries)]


def is_single_pair(pairs: Any) -> bool:
    """Return whether `pairs` is one pair of texts, as FlagEmbedding takes it, and not a sequence of pairs."""
    return (
        isinstance(pairs, list | tuple) and len(pairs) == 2 and all(isinstance(text, str) for text in pairs)
    )


def check_text(text: Any, name: str) -> str:
    """Return `text`; raise ValueError, which calls it `name`, if it is not a text that UTF-8 can hold."""
    if not isinstance(text, str):
        raise ValueError(f"{name} is {shorten(text)}; give a text")
    if not is_utf8(text):
        raise ValueError(f"{name} has half a surrogate pair, which UTF-8 cannot hold; remove it")
    return text


def _entries(values: Any, name: str) -> list[Any]:
    """Return the entries of an ordered collection, as a list."""
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is {shorten(values)}; give a list")
    # A table of pandas or polars would yield the names of its columns.
    if (columns := getattr(values, "columns", None)) is not None:
        raise ValueError(
            f"{name} is a table with the columns {list(columns)}; give one column, or a list of rows"
        )
    return list(values)


def _text_of(document: Any, name: str) -> str:
    if not isinstance(document, Mapping):
        return check_text(document, name)
    if "text" not in document:
        raise ValueError(f"{name} has no `text`, but {shorten(list(document))}; name that key `text`")
    title = document.get("title")
    title = "" if title is None else check_text(title, f"{name}['title']")
    return with_title(title, check_text(document["text"], f"{name}['text']"))


def _pair_of(pair: Any, name: str) -> tuple[str, str]:
    if isinstance(pair, str | bytes | Mapping | Set) or not isinstance(pair, Iterable):
        raise ValueError(f"{name} is {shorten(pair)}; give a pair of query and passage")
    texts = list(pair)
    if len(texts) != 2:
        raise ValueError(f"{name} has {len(texts)} texts; give a pair of query and passage")
    return check_text(texts[0], f"{name}[0]"), _text_of(texts[1], f"{name}[1]")
