"""Tests of reading, drawing, tokenising and batching training groups."""

from __future__ import annotations

import pytest
import tiny
import torch

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_jsonl
from lwr.config.model import PromptTemplate
from lwr.model.prompt import Prompt
from lwr.model.reranker import LayerwiseReranker
from lwr.training.dataset import TrainingGroup, collate, read_groups
from lwr.training.losses.layerwise import LayerwiseLoss, assign_teachers, layerwise_loss

LINE = {"query": "open a file", "pos": ["open()"], "neg": ["abs()", "sum()", "ord()"]}
SHORT = PromptTemplate(
    query="{query}", between="|", passage="{passage}", after=["?{instruction}"], instruction=""
)


@pytest.fixture
def prompt() -> Prompt:
    return Prompt(tiny.tokenizer(encoder=False), SHORT)


@pytest.fixture
def read(tmp_path, prompt):
    """Return a function that reads the groups of a file with the given lines."""

    def write_and_read(lines: list[dict], group_size: int = 3, seed: int = 0) -> list[TrainingGroup]:
        write_jsonl(tmp_path / "groups.jsonl", lines)
        return read_groups(tmp_path / "groups.jsonl", prompt, group_size, seed)

    return write_and_read


def texts(group: TrainingGroup) -> list[str]:
    tokenizer = tiny.tokenizer(encoder=False)
    return [tokenizer.decode(row.input_ids).removeprefix("<s>") for row in group.rows]


def passages(group: TrainingGroup) -> list[str]:
    return [text.split("|")[1].split("?")[0] for text in texts(group)]


# --- reading -------------------------------------------------------------------------------------------


def test_positive_comes_first(read):
    (group,) = read([LINE], group_size=4)
    first, *rest = texts(group)
    assert first == "open a file|open()?"
    assert sorted(rest) == ["open a file|abs()?", "open a file|ord()?", "open a file|sum()?"]
    assert group.teacher_scores is None


def test_draws_one_positive_and_group_size_minus_one_negatives(read):
    line = LINE | {"pos": [f"p{i}" for i in range(5)], "neg": [f"n{i}" for i in range(9)]}
    groups = read([line] * 40, group_size=4)
    drawn = [passages(group) for group in groups]
    assert {positive for positive, *_ in drawn} == set(line["pos"])
    assert {negative for _, *negatives in drawn for negative in negatives} == set(line["neg"])
    assert all(len(set(negatives)) == 3 for _, *negatives in drawn), (
        "no negative is repeated if there are enough"
    )


def test_too_few_negatives_are_repeated(read):
    (group,) = read([LINE], group_size=8)
    positive, *negatives = passages(group)
    assert positive == "open()"
    assert len(negatives) == 7
    assert all(negatives.count(text) <= 3 for text in LINE["neg"])


def test_draw_depends_only_on_seed_and_line_number(read):
    lines = [LINE | {"neg": [f"n{i}" for i in range(99)]}] * 3
    drawn = [passages(group) for group in read(lines, seed=1)]
    assert drawn == [passages(group) for group in read(lines, seed=1)]
    assert drawn[:2] == [passages(group) for group in read(lines[:2], seed=1)]
    assert drawn != [passages(group) for group in read(lines, seed=2)]
    assert drawn[0] != drawn[1]


def test_instruction_of_a_line_replaces_the_templates(read):
    plain, own = read([LINE, LINE | {"prompt": "Is it?"}])
    assert texts(plain)[0].endswith("open()?")
    assert texts(own)[0].endswith("open()?Is it?")


def test_prompts_of_a_line_precede_its_texts(read):
    plain, own = read([LINE, LINE | {"query_prompt": "Q: ", "passage_prompt": "P: "}])
    assert texts(plain)[0] == "open a file|open()?"
    assert texts(own)[0] == "Q: open a file|P: open()?"
    assert all("|P: " in text for text in texts(own))


def test_instruction_that_an_encoder_cannot_read_is_refused_with_its_line(tmp_path):
    write_jsonl(tmp_path / "groups.jsonl", [LINE, LINE | {"prompt": "Is it?"}])
    encoder = Prompt(tiny.tokenizer(encoder=True), None)
    with pytest.raises(BadInput, match=r"groups\.jsonl:2: field 'prompt' is 'Is it\?'.*encoders"):
        read_groups(tmp_path / "groups.jsonl", encoder, group_size=2, seed=0)


def test_upstream_default_instruction_does_not_replace_the_templates(read):
    (group,) = read([LINE | {"prompt": PromptTemplate().instruction}])
    assert texts(group)[0].endswith("open()?")


def test_teacher_scores_match_the_drawn_passages(read):
    line = LINE | {"pos": ["p0", "p1"], "pos_scores": [10.0, 11.5], "neg_scores": [0.25, 1, -2.0]}
    score_of = dict(
        zip([*line["pos"], *line["neg"]], [*line["pos_scores"], *line["neg_scores"]], strict=True)
    )
    for group in read([line] * 9, group_size=4):
        assert group.teacher_scores == [score_of[text] for text in passages(group)]


# --- malformed files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"query": "q", "neg": ["n"]}, "field 'pos' is missing"),
        (LINE | {"query": 3}, "field 'query' is 3"),
        (LINE | {"neg": []}, "field 'neg'"),
        (LINE | {"pos": [None]}, "field 'pos'"),
        (LINE | {"prompt": 3}, "field 'prompt' is 3"),
        (LINE | {"query_prompt": 3}, "field 'query_prompt' is 3"),
        (LINE | {"passage_prompt": []}, "field 'passage_prompt' is []"),
        (
            LINE | {"pos_scores": [1.0], "neg_scores": [1.0]},
            "field 'neg_scores'",
        ),
        (LINE | {"pos_scores": [1.0]}, "field 'neg_scores'"),
        (
            LINE | {"pos_scores": ["1"], "neg_scores": [1, 2, 3]},
            "field 'pos_scores'",
        ),
    ],
)
def test_malformed_line_is_reported_with_file_and_line(read, tmp_path, line, expected):
    with pytest.raises(BadInput) as error:
        read([LINE, line])
    assert f"{tmp_path / 'groups.jsonl'}:2: " in str(error.value)
    assert expected in str(error.value)


def test_teacher_scores_on_some_lines_only_are_refused(read):
    scored = LINE | {"pos_scores": [1.0], "neg_scores": [1, 2, 3]}
    with pytest.raises(BadInput, match=r"groups\.jsonl:2: .*teacher scores"):
        read([LINE, scored])


def test_empty_file_is_refused(read):
    with pytest.raises(BadInput, match="no group"):
        read([])


# --- batches -------------------------------------------------------------------------------------------


def test_batch_keeps_groups_in_order(read):
    lines = [LINE | {"query": f"query {i} " + "and more " * i} for i in range(3)]
    groups = read(lines, group_size=4)
    batch = collate(groups, tiny.tokenizer(encoder=False))
    assert batch["group_names"] == [f"groups.jsonl:{i}" for i in (1, 2, 3)]
    assert batch["teacher_scores"] is None
    rows = [row for group in groups for row in group.rows]
    for row, ids, mask in zip(
        rows, batch["features"]["input_ids"], batch["features"]["attention_mask"], strict=True
    ):
        assert ids[mask.bool()].tolist() == row.input_ids


def test_teacher_scores_of_a_batch_are_grouped(read):
    scored = LINE | {"pos_scores": [9.0], "neg_scores": [1, 2, 3]}
    groups = read([scored, scored])
    batch = collate(groups, tiny.tokenizer(encoder=False))
    assert batch["teacher_scores"].dtype == torch.float32
    assert batch["teacher_scores"].tolist() == [group.teacher_scores for group in groups]


def loss_of(model: LayerwiseReranker, groups: list[TrainingGroup]) -> LayerwiseLoss:
    batch = collate(groups, model.tokenizer)
    scores = model.train()(batch["features"]).view(len(model.exits), len(groups), -1)
    teachers = assign_teachers(model.exits, "deepest")
    return layerwise_loss(scores, teachers, external=batch["teacher_scores"])


def test_loss_of_a_smaller_last_batch_is_the_mean_over_its_groups(read):
    lines = [LINE | {"query": f"query number {i}"} for i in range(7)]
    groups = read(lines, group_size=4)
    model = LayerwiseReranker(
        tiny.backbone("llama"), tiny.tokenizer(encoder=False), start_layer=2, template=SHORT
    )
    model.heads.requires_grad_(False).apply(lambda heads: [torch.nn.init.normal_(head) for head in heads])

    for batch in (groups[:4], groups[4:]):
        alone = torch.stack([loss_of(model, [group]).total for group in batch])
        assert alone.std() > 0.01, "the groups must differ for this test to mean anything"
        torch.testing.assert_close(loss_of(model, batch).total, alone.mean())


def test_external_teacher_changes_the_distillation_loss(read):
    scored = LINE | {"pos_scores": [9.0], "neg_scores": [1, 2, 3]}
    model = LayerwiseReranker(
        tiny.backbone("llama"), tiny.tokenizer(encoder=False), start_layer=2, template=SHORT
    )
    with_teacher, without = (loss_of(model, read([line] * 2)) for line in (scored, LINE))
    assert torch.equal(with_teacher.ranking, without.ranking)
    assert (with_teacher.distillation > without.distillation).all()
