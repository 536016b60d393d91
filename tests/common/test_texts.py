"""Tests of the texts that callers give: what is accepted, and what the message on anything else names."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lwr.common.texts import check_documents, check_pairs

TEXTS = ["first", "second"]


@pytest.mark.parametrize(
    "documents",
    [
        TEXTS,
        tuple(TEXTS),
        iter(TEXTS),
        (text for text in TEXTS),
        np.array(TEXTS),
        pd.Series(TEXTS, index=[7, 3]),
        pd.Series(TEXTS, index=["a", "a"]),
        [{"text": "first"}, {"text": "second", "title": "", "id": 7}],
        [{"text": "first", "title": None}, "second"],
    ],
    ids=["list", "tuple", "iterator", "generator", "array", "gaps", "same labels", "mappings", "mixed"],
)
def test_documents_of_every_kind_are_read(documents):
    assert check_documents(documents) == TEXTS


def test_title_comes_before_the_text_as_in_a_corpus():
    assert check_documents([{"title": "Csv", "text": "reads tables"}]) == ["Csv reads tables"]


def test_no_documents_are_no_texts():
    assert check_documents([]) == []
    assert check_pairs([]) == []


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("one text", "documents is 'one text'; give a list"),
        (None, "documents is None; give a list"),
        ({"text": "a"}, "documents is .*; give a list"),
        ({"a", "b"}, "documents is .*; give a list"),
        (["a", None], r"documents\[1\] is None"),
        (["a", float("nan")], r"documents\[1\] is nan"),
        (pd.Series(["a", None], index=[5, 9]), r"documents\[1\] is (None|nan)"),
        ([b"a"], r"documents\[0\] is b'a'"),
        ([["a"]], r"documents\[0\] is \['a'\]"),
        ([{"body": "a"}], r"documents\[0\] has no `text`, but \['body'\]"),
        ([{"text": None}], r"documents\[0\]\['text'\] is None"),
        ([{"text": "a", "title": 7}], r"documents\[0\]\['title'\] is 7"),
        (["\ud800"], r"documents\[0\] has half a surrogate pair"),
        (pd.DataFrame({"text": TEXTS}), r"documents is a table with the columns \['text'\]"),
        (np.array([TEXTS]), r"documents\[0\] is array"),
    ],
)
def test_other_documents_are_refused(documents, message):
    with pytest.raises(ValueError, match=message):
        check_documents(documents)


@pytest.mark.parametrize(
    "pairs",
    [
        [("q", "p"), ("q", "r")],
        [["q", "p"], ["q", "r"]],
        zip(["q", "q"], ["p", "r"], strict=True),
        np.array([["q", "p"], ["q", "r"]]),
        pd.Series([("q", "p"), ("q", "r")], index=[4, 2]),
        [("q", {"text": "p"}), ("q", pd.Series(["r"])[0])],
    ],
    ids=["tuples", "lists", "zip", "array", "gaps", "mappings"],
)
def test_pairs_of_every_kind_are_read(pairs):
    assert check_pairs(pairs) == [("q", "p"), ("q", "r")]


@pytest.mark.parametrize("pair", [("q", "p"), ["q", "p"]], ids=["tuple", "list"])
def test_one_pair_is_read(pair):
    assert check_pairs(pair) == [("q", "p")]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("qp", "pairs is 'qp'; give a list"),
        (None, "pairs is None; give a list"),
        (["q", "p", "r"], r"pairs\[0\] is 'q'; give a pair"),
        (["q", None], r"pairs\[0\] is 'q'; give a pair"),
        ([("q", "p"), ("q",)], r"pairs\[1\] has 1 texts; give a pair"),
        ([("q", "p", "r")], r"pairs\[0\] has 3 texts; give a pair"),
        ([("q", "p"), None], r"pairs\[1\] is None; give a pair"),
        ([("q", None)], r"pairs\[0\]\[1\] is None"),
        ([(None, "p")], r"pairs\[0\]\[0\] is None"),
        ([{"query": "q", "passage": "p"}], r"pairs\[0\] is .*; give a pair"),
        (pd.DataFrame({"query": ["q"], "passage": ["p"]}), r"pairs is a table .*'query', 'passage'"),
    ],
)
def test_other_pairs_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        check_pairs(pairs)
