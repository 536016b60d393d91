"""Tests of tokenising pairs: templates of decoders, pair formats of encoders, and lengths."""

from __future__ import annotations

from collections import Counter

import pytest
import tiny
from transformers import PreTrainedTokenizerFast

from lwr.common.errors import BadInput
from lwr.config.model import PromptTemplate
from lwr.model.prompt import LinePrompts, Prompt, Row, yes_ids, yes_token

QUERY, PASSAGE = "how is a string decoded?", "Decode a JSON document from a string."
LONG = "Return the Python representation of the string, which is a JSON document, with its index. " * 9
INSTRUCTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query "
    "by providing a prediction of either 'Yes' or 'No'."
)
SHORT = PromptTemplate(query="{query}", between="|", passage="{passage}", after=["?"])


@pytest.fixture
def decoder() -> PreTrainedTokenizerFast:
    return tiny.tokenizer(encoder=False)


@pytest.fixture
def encoder() -> PreTrainedTokenizerFast:
    return tiny.tokenizer(encoder=True)


def without(tokenizer: PreTrainedTokenizerFast, **special) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **special)


def row(prompt: Prompt, query: str, passage: str, instruction: str | None = None) -> Row:
    """Tokenise one pair."""
    (only,) = prompt.rows([(query, passage)], LinePrompts(instruction))
    return only


# --- decoders: upstream's template ---------------------------------------------------------------------


def test_default_template_is_upstreams(decoder):
    ids = row(Prompt(decoder, PromptTemplate()), QUERY, PASSAGE).input_ids
    assert decoder.decode(ids) == f"<s>A: {QUERY}\nB: {PASSAGE}\n{INSTRUCTION}"


def test_pieces_are_tokenised_separately(decoder):
    parts = [f"A: {QUERY}", "\n", f"B: {PASSAGE}", "\n", INSTRUCTION]
    ids = [i for part in parts for i in decoder(part, add_special_tokens=False)["input_ids"]]
    tokenised = row(Prompt(decoder, PromptTemplate()), QUERY, PASSAGE)
    assert tokenised.input_ids == [decoder.bos_token_id, *ids]
    assert tokenised.token_type_ids is None
    assert len(tokenised) == len(ids) + 1


@pytest.mark.parametrize(
    ("prompts", "written"),
    [
        (LinePrompts(), f"A: {QUERY}\nB: {PASSAGE}\n{INSTRUCTION}"),
        (LinePrompts(instruction="Is it?"), f"A: {QUERY}\nB: {PASSAGE}\nIs it?"),
        (LinePrompts(query="Q {query} "), f"Q {{query}} {QUERY}\nB: {PASSAGE}\n{INSTRUCTION}"),
        (LinePrompts(query="", passage="P: "), f"{QUERY}\nP: {PASSAGE}\n{INSTRUCTION}"),
    ],
)
def test_prompts_of_a_line_replace_the_templates(decoder, prompts, written):
    prompt = Prompt(decoder, PromptTemplate())
    plain, own = prompt.group_rows([(QUERY, [PASSAGE], LinePrompts()), (QUERY, [PASSAGE, "b"], prompts)])
    assert plain == prompt.rows([(QUERY, PASSAGE)])
    assert decoder.decode(own[0].input_ids) == f"<s>{written}"
    assert decoder.decode(own[1].input_ids) == f"<s>{written}".replace(PASSAGE, "b")


def test_prompts_of_a_line_precede_the_texts_of_an_encoder(encoder):
    prompts = LinePrompts(query="query: ", passage="passage: ")
    ((own,),) = Prompt(encoder, None).group_rows([(QUERY, [PASSAGE], prompts)])
    assert own == row(Prompt(encoder, None), f"query: {QUERY}", f"passage: {PASSAGE}")


def test_instruction_without_a_place_is_refused(decoder, encoder):
    for prompt in (Prompt(encoder, None), Prompt(decoder, SHORT)):
        for ignored in ({"prompt": INSTRUCTION}, {"prompt": ""}, {"prompt": None}, {"query_prompt": "Q: "}):
            prompt.check_line(LinePrompts.from_line(ignored), "x:1")
        with pytest.raises(BadInput, match=r"^x:1: field 'prompt' is 'Is it\?'.*query_prompt"):
            prompt.check_line(LinePrompts.from_line({"prompt": "Is it?"}), "x:1")
    Prompt(decoder, PromptTemplate()).check_line(LinePrompts("Is it?"), "x:1")


def test_instruction_replaces_the_templates(decoder):
    ids = row(Prompt(decoder, PromptTemplate()), QUERY, PASSAGE, "Is B about A?").input_ids
    assert decoder.decode(ids) == f"<s>A: {QUERY}\nB: {PASSAGE}\nIs B about A?"


def test_braces_in_texts_are_kept(decoder):
    ids = row(Prompt(decoder, PromptTemplate()), "{passage} {query}", "{query} {instruction} {}").input_ids
    assert decoder.decode(ids).startswith("<s>A: {passage} {query}\nB: {query} {instruction} {}\n")


def test_chat_template_in_the_style_of_qwen3_reranker(decoder):
    template = PromptTemplate(
        prefix='<|im_start|>system\nAnswer only "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Web search\n',
        query="<Query>: {query}",
        between="\n",
        passage="<Document>: {passage}",
        after=["<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"],
    )
    prompt = Prompt(without(decoder, pad_token="<pad>"), template, 32, 224)
    assert decoder.decode(row(prompt, QUERY, PASSAGE).input_ids) == (
        '<|im_start|>system\nAnswer only "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Web search\n'
        f"<Query>: {QUERY}\n<Document>: {PASSAGE}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    cut = row(prompt, QUERY, LONG).input_ids
    assert len(cut) == 256 - len(yes_ids(decoder))
    assert decoder.decode(cut).endswith("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_tokenizer_without_bos_starts_with_the_query(decoder):
    ids = row(Prompt(without(decoder, pad_token="<pad>"), SHORT), QUERY, PASSAGE).input_ids
    assert decoder.decode(ids) == f"{QUERY}|{PASSAGE}?"


def test_bos_that_is_the_pad_token_is_left_out(decoder):
    ids = row(Prompt(without(decoder, bos_token="<s>", pad_token="<s>"), SHORT), QUERY, PASSAGE).input_ids
    assert decoder.decode(ids) == f"{QUERY}|{PASSAGE}?"


def test_tokenizer_without_pad_starts_with_bos(decoder):
    ids = row(Prompt(without(decoder, bos_token="<s>"), SHORT), QUERY, PASSAGE).input_ids
    assert decoder.decode(ids) == f"<s>{QUERY}|{PASSAGE}?"


def test_yes_token_is_the_last_of_yes(decoder):
    assert decoder.decode(yes_ids(decoder)) == "Yes"
    assert yes_token(decoder) == yes_ids(decoder)[-1]


# --- decoders: what is cut -----------------------------------------------------------------------------


@pytest.mark.parametrize(("query", "passage"), [(QUERY, LONG), (LONG, PASSAGE), (LONG, LONG)])
@pytest.mark.parametrize(("q", "p"), [(32, 224), (8, 120), (120, 40), (60, 60)])
def test_row_with_answer_fits_the_sum_of_lengths_and_keeps_instruction(decoder, query, passage, q, p):
    tokenised = decoder.decode(row(Prompt(decoder, PromptTemplate(), q, p), query, passage).input_ids)
    assert len(row(Prompt(decoder, PromptTemplate(), q, p), query, passage)) + len(yes_ids(decoder)) <= q + p
    assert tokenised.startswith("<s>A: ")
    assert tokenised.endswith(f"\n{INSTRUCTION}")
    assert tokenised.count("\n") >= 2, "the text between query and passage is never cut"


def test_passage_is_cut_first(decoder):
    ids = row(Prompt(decoder, PromptTemplate(), 60, 60), QUERY, LONG).input_ids
    query, passage, _ = decoder.decode(ids).split("\n")
    assert query == f"<s>A: {QUERY}"
    assert f"B: {LONG}".startswith(passage)
    assert len(ids) == 120 - len(yes_ids(decoder)), "no more of it is cut than necessary"


def test_query_that_fills_the_row_is_cut(decoder):
    text = decoder.decode(row(Prompt(decoder, SHORT, 12, 4), LONG, PASSAGE).input_ids)
    query, passage = text.removeprefix("<s>").split("|")
    assert LONG.startswith(query)
    assert passage == "?"


def test_query_takes_a_quarter_of_the_passage_and_passage_half_of_the_query(decoder):
    prompt = Prompt(decoder, SHORT, 16, 80)
    assert len(prompt.queries([LONG])[LONG]) == 16 + 80 // 4
    assert len(prompt.passages([LONG])[LONG]) == 80 + 16 // 2


def test_long_instruction_counts_towards_the_row(decoder):
    prompt = Prompt(decoder, PromptTemplate(), 60, 60)
    longer = f"{INSTRUCTION} A query may be short."
    tokenised = row(prompt, QUERY, LONG, longer)
    assert decoder.decode(tokenised.input_ids).endswith(f"\n{longer}")
    assert len(tokenised) + len(yes_ids(decoder)) == 120


@pytest.mark.parametrize("passage_tokens", [1, 20, 27, 28, 29, 80])
def test_rows_whose_passage_does_not_fit_are_counted(encoder, passage_tokens):
    """Of 24 + 8 tokens, [CLS] and two [SEP] take 3 and the query 1, so that 28 are left, and 24 + 8 // 2 at most."""
    prompt = Prompt(encoder, None, query_max_len=8, passage_max_len=24)
    passage = " ".join(["a"] * passage_tokens)
    assert len(encoder(passage, add_special_tokens=False)["input_ids"]) == passage_tokens
    cut = prompt.count_cut(prompt.rows([("a", passage), ("a", "a")]))
    assert cut == int(passage_tokens >= 28)
    said = prompt.describe_cut(cut, 2)
    assert said.startswith("1 of 2 pairs (50%) fill the 32 tokens" if cut else "0 of 2 pairs (0%) are cut")


def test_queries_that_do_not_fit_are_counted(encoder):
    """A query may take 8 + 24 // 4 tokens."""
    prompt = Prompt(encoder, None, query_max_len=8, passage_max_len=24)
    long, short = " ".join(["a"] * 14), "a a"
    said = prompt.describe_cut_queries([(long, LinePrompts()), (short, LinePrompts()), (long, LinePrompts())])
    assert said == "1 of 2 queries (50%) fill the 14 tokens of a query; the rest of the query is not read"
    assert prompt.describe_cut_queries([(short, LinePrompts())]) is None
    before = LinePrompts(query="a " * 12)  # which is cut with the query
    assert prompt.describe_cut_queries([(short, before)]) is not None


def test_inference_lengths_are_upstreams(decoder):
    prompt = Prompt(decoder, SHORT).use_inference_lengths(20)
    assert len(prompt.queries([LONG])[LONG]) == 15
    assert len(prompt.passages([LONG])[LONG]) == 20
    assert len(row(prompt, QUERY, LONG)) == 20 + 2 * len(decoder("?")["input_ids"])


def test_template_that_fills_the_row_is_refused(decoder):
    taken = 3 + len(decoder(INSTRUCTION, add_special_tokens=False)["input_ids"])
    answer = len(yes_ids(decoder))
    with pytest.raises(
        ValueError, match=f"leave none .* the prompt itself takes {taken}; raise passage_max_len"
    ):
        Prompt(decoder, PromptTemplate(), 10, taken + answer - 10)
    Prompt(decoder, PromptTemplate(), 10, taken + answer - 9)


def test_instruction_that_fills_the_row_is_refused(decoder):
    with pytest.raises(ValueError, match="leave none"):
        row(Prompt(decoder, PromptTemplate(), 60, 60), QUERY, PASSAGE, LONG)


# --- encoders: the tokenizer's own pair ----------------------------------------------------------------


@pytest.mark.parametrize("passage", [PASSAGE, LONG], ids=["complete", "cut"])
def test_encoder_pair_equals_the_tokenizers(encoder, passage):
    expected = encoder(QUERY, passage, truncation="only_second", max_length=64)
    tokenised = row(Prompt(encoder, None, 20, 44), QUERY, passage)
    assert tokenised.input_ids == expected["input_ids"]
    assert tokenised.token_type_ids == expected["token_type_ids"]
    assert set(tokenised.token_type_ids) == {0, 1}


def test_encoder_pair_without_token_types(encoder):
    plain = PreTrainedTokenizerFast(
        tokenizer_object=encoder.backend_tokenizer, model_input_names=["input_ids", "attention_mask"]
    )
    tokenised = row(Prompt(plain, None), QUERY, PASSAGE)
    assert tokenised.input_ids == plain(QUERY, PASSAGE)["input_ids"]
    assert tokenised.token_type_ids is None


@pytest.mark.parametrize(("q", "p"), [(4, 4), (16, 4), (4, 16), (32, 224)])
def test_cut_encoder_pair_keeps_special_tokens(encoder, q, p):
    ids = row(Prompt(encoder, None, q, p), LONG, LONG).input_ids
    start, end = encoder.bos_token_id, encoder.eos_token_id
    assert ids[0] == start
    assert ids[-1] == end
    assert ids.count(end) == 2
    assert len(ids) <= q + p


def test_special_tokens_that_fill_the_row_are_refused(encoder):
    with pytest.raises(ValueError, match=r"rows of 3 tokens leave none .* takes 3"):
        Prompt(encoder, None, 1, 2)
    with pytest.raises(ValueError, match="leave none"):
        Prompt(encoder, None).use_inference_lengths(3)


# --- number of tokenisations -----------------------------------------------------------------------------------------


class _Counting(PreTrainedTokenizerFast):
    def __call__(self, texts, *rest, **options):
        self.seen.update([texts] if isinstance(texts, str) else texts)
        return super().__call__(texts, *rest, **options)


def test_each_distinct_text_is_tokenised_once(decoder):
    counting = _Counting(tokenizer_object=decoder.backend_tokenizer, bos_token="<s>", pad_token="<pad>")
    counting.seen = Counter()
    prompt = Prompt(counting, PromptTemplate())
    counting.seen.clear()
    pairs = [(query, passage) for query in ("one", "two", "three") for passage in ("x", "y", "x")]
    rows = prompt.rows(pairs)
    assert counting.seen == {f"A: {q}": 1 for q in ("one", "two", "three")} | {"B: x": 1, "B: y": 1}
    assert rows == [row(Prompt(decoder, PromptTemplate()), *pair) for pair in pairs]


def test_no_pairs_make_no_rows(decoder):
    assert Prompt(decoder, PromptTemplate()).rows([]) == []
