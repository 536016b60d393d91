"""Tests of an instruction per call: its rows, its scores in every way of ranking, and models that refuse it."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import tiny

from lwr.common.errors import BadInput
from lwr.config.model import PromptTemplate
from lwr.formats.fusion import Fusion
from lwr.model.prompt import LinePrompts
from lwr.model.reranker import LayerwiseReranker

QUERY = "load the object"
TEXTS = [f"def decode{i}(s): return s" + " and more" * (i % 4) for i in range(9)]
INSTRUCTION = "Is B the code that A asks for?"
UPSTREAM = PromptTemplate()
QWEN3 = PromptTemplate(
    prefix="<Instruct>: {instruction}\n<Query>:",
    query=" {query}",
    between="\n<Document>:",
    passage=" {passage}",
    after=["\n<think>\n\n</think>\n\n"],
    instruction="Given a query, retrieve passages that answer it",
)
FIRST_STAGE = [3.5, 9.25, 1.0, 4.5, 4.5, 7.0, 2.0, 8.0, 0.5]
WAYS = [
    {},
    {"layer": 3},
    {"cascade": "2:5 3:2 4"},
    {"cascade": "0:6 2:4 4", "first_stage": FIRST_STAGE},
    {"cascade": "2:4 4", "fused": True},
    {"layer": 3, "fused": True, "first_stage": FIRST_STAGE},
    {"layer": 4, "compression": "2/2"},
    {"budget_ms": 1e-6},
    {"budget_ms": 1e9, "fused": True},
]
in_every_way = pytest.mark.parametrize("how", WAYS, ids=str)


def build(template: PromptTemplate, architecture: str = "llama") -> LayerwiseReranker:
    return build_once(template.model_dump_json(), architecture)


@cache
def build_once(template: str, architecture: str) -> LayerwiseReranker:
    tokenizer = tiny.tokenizer(encoder=architecture in tiny.ENCODERS)
    backbone = tiny.backbone(architecture)
    lengths = {"query_max_len": 16, "passage_max_len": 200}
    options = {"template": PromptTemplate.model_validate_json(template), **lengths}
    reranker = LayerwiseReranker(backbone, tokenizer, start_layer=2, **options).eval()
    exits = {k: {f"layer_{known}": (-1.0) ** known for known in range(2, k + 1)} for k in (2, 3, 4)}
    reranker.fusion = Fusion({k: {"first_stage": 0.5} | weights for k, weights in exits.items()}, exits)
    return reranker


def with_default(template: PromptTemplate, instruction: str) -> LayerwiseReranker:
    """Return a reranker whose own instruction this is."""
    return build(template.model_copy(update={"instruction": instruction}))


@in_every_way
@pytest.mark.parametrize("template", [UPSTREAM, QWEN3], ids=["upstream", "qwen3"])
def test_an_instruction_ranks_as_if_it_were_the_models_own(template, how):
    found = build(template).rank(QUERY, TEXTS, instruction=INSTRUCTION, **how)
    assert found == with_default(template, INSTRUCTION).rank(QUERY, TEXTS, **how)
    assert found != build(template).rank(QUERY, TEXTS, **how)


@in_every_way
@pytest.mark.parametrize("template", [UPSTREAM, QWEN3], ids=["upstream", "qwen3"])
def test_the_models_own_instruction_changes_no_bit(template, how):
    own = build(template).rank(QUERY, TEXTS, instruction=template.instruction, **how)
    assert own == build(template).rank(QUERY, TEXTS, **how)


@pytest.mark.parametrize("template", [UPSTREAM, QWEN3], ids=["upstream", "qwen3"])
def test_score_takes_an_instruction(template):
    pairs = [(QUERY, text) for text in TEXTS]
    plain = build(template).score(pairs, layers="all")
    np.testing.assert_array_equal(
        build(template).score(pairs, layers="all", instruction=template.instruction), plain
    )
    other = build(template).score(pairs, layers="all", instruction=INSTRUCTION)
    np.testing.assert_array_equal(other, with_default(template, INSTRUCTION).score(pairs, layers="all"))
    assert (other != plain).all()


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (UPSTREAM, f"<s>A: {QUERY}\nB: {TEXTS[0]}\n{INSTRUCTION}"),
        (
            QWEN3,
            f"<s><Instruct>: {INSTRUCTION}\n<Query>: {QUERY}\n<Document>: {TEXTS[0]}\n<think>\n\n</think>\n\n",
        ),
    ],
    ids=["upstream", "qwen3"],
)
def test_row_with_an_instruction(template, written):
    prompt = build(template).prompt
    [row] = prompt.rows([(QUERY, TEXTS[0])], prompt.with_instruction(INSTRUCTION))
    assert prompt.tokenizer.decode(row.input_ids) == written
    assert prompt.with_instruction(None) == LinePrompts()


@pytest.mark.parametrize(
    ("template", "architecture", "reason"),
    [
        (UPSTREAM, "bert", "encoders read pairs without one"),
        (PromptTemplate(after=["?"]), "llama", "its template has no {instruction}"),
    ],
    ids=["encoder", "template"],
)
def test_a_model_without_a_place_for_an_instruction_refuses_it(template, architecture, reason):
    reranker = build(template, architecture)
    told = re.escape(f"instruction is {INSTRUCTION!r}, but the model reads none ({reason}); leave it out")
    with pytest.raises(BadInput, match=told):
        reranker.rank(QUERY, TEXTS, instruction=INSTRUCTION)
    with pytest.raises(BadInput, match=told):
        reranker.score([(QUERY, TEXTS[0])], instruction=INSTRUCTION)


@pytest.mark.parametrize(
    ("instruction", "told"),
    [
        ("", "instruction is empty"),
        (7, "instruction is 7; give a text"),
        ("a\ud800", "half a surrogate pair"),
        ("and more " * 300, "leave none for query and passage"),
    ],
    ids=["empty", "number", "surrogate", "long"],
)
def test_a_wrong_instruction_is_refused(instruction, told):
    with pytest.raises(ValueError, match=told):
        build(UPSTREAM).rank(QUERY, TEXTS, instruction=instruction)
