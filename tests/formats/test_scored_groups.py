"""Rows with scores become training groups, from JSON lines, JSON lists and Parquet alike."""

import json

import pandas as pd
import pytest

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_jsonl
from lwr.formats.scored_groups import make_groups, read_scored_rows
from lwr.formats.training_groups import read_training_groups

PASSAGES = [
    {"query": "one", "passage": "a", "score": 0.5},
    {"query": "two", "passage": "a", "score": -3},
    {"query": "one", "passage": "b", "score": 2.5},
    {"query": "one", "passage": "c", "score": -1.0},
    {"query": "two", "passage": "d", "score": -2},
    {"query": "alone", "passage": "a", "score": 1.0},
]
LISTS = [
    {"query": "one", "positive": "b", "negatives": ["a", "c"], "scores": [2.5, 0.5, -1.0]},
    {"query": "two", "positive": "d", "negatives": ["a"], "scores": [-2, -3]},
]
GROUPS = [
    {"query": "one", "pos": ["b"], "neg": ["a", "c"], "pos_scores": [2.5], "neg_scores": [0.5, -1.0]},
    {"query": "two", "pos": ["d"], "neg": ["a"], "pos_scores": [-2], "neg_scores": [-3]},
]


def write(folder, rows, form):
    path = folder / f"rows.{form}"
    if form == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif form == "json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    return path


def made(path, columns=None, positive_from=None):
    return list(make_groups(read_scored_rows([path]), columns or {}, positive_from, str(path)))


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "json", "parquet"])
@pytest.mark.parametrize("rows", [PASSAGES, LISTS], ids=["passages", "lists"])
def test_every_form_gives_the_same_groups(tmp_path, rows, form):
    groups = made(write(tmp_path, rows, form))
    assert groups == GROUPS
    write_jsonl(tmp_path / "groups.jsonl", groups)
    assert list(read_training_groups([tmp_path / "groups.jsonl"])) == GROUPS


def test_rows_of_several_files_are_grouped_together(tmp_path):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, rows in zip(files, (PASSAGES[:2], PASSAGES[2:]), strict=True):
        write_jsonl(path, rows)
    assert list(make_groups(read_scored_rows(files), {}, None, "x")) == GROUPS


def test_queries_without_a_negative_are_counted(tmp_path, capsys):
    made(write(tmp_path, PASSAGES, "jsonl"))
    assert "1 of 3 queries" in capsys.readouterr().err


def test_grades_decide_what_is_positive(tmp_path, capsys):
    one, *rest = made(write(tmp_path, PASSAGES, "jsonl"), positive_from=0.5)
    assert (one["pos"], one["pos_scores"]) == (["a", "b"], [0.5, 2.5])
    assert (one["neg"], one["neg_scores"]) == (["c"], [-1.0])
    assert not rest
    assert "2 of 3 queries" in capsys.readouterr().err


def test_columns_are_renamed_and_others_named_in_the_log(tmp_path, capsys):
    rows = [
        {"document" if key == "passage" else key: value for key, value in row.items()} | {"source": "x"}
        for row in PASSAGES
    ]
    assert made(write(tmp_path, rows, "parquet"), {"passage": "document"}) == GROUPS
    assert "document, query, score are read; source are not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"query": "one", "passage": "b"}, r":7: field 'score' is missing.*`columns`"),
        (PASSAGES[0] | {"score": "1"}, r":7: field 'score' is '1'"),
        (PASSAGES[0] | {"score": 1e39}, r":7: field 'score' is 1e\+39.*float32"),
        (PASSAGES[0] | {"score": None}, r":7: field 'score'"),
        (PASSAGES[0] | {"query": " "}, r":7: field 'query'"),
        (PASSAGES[0] | {"passage": 7}, r":7: field 'passage' is 7"),
        (PASSAGES[0] | {"score": 0.75}, r":7: .*scored twice, 0\.5 and 0\.75"),
    ],
)
def test_broken_row_of_a_passage_is_refused_with_its_line(tmp_path, row, says):
    with pytest.raises(BadInput, match=rf"rows\.jsonl{says}"):
        made(write(tmp_path, [*PASSAGES, row], "jsonl"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"negatives": []}, "field 'negatives'"),
        ({"negatives": None}, "field 'negatives'"),
        ({"scores": [1.0]}, "field 'scores' .* each of the 2 negatives"),
        ({"scores": [1.0, float("nan"), 2.0]}, "field 'scores'"),
        ({"positive": ""}, "field 'positive'"),
    ],
)
def test_broken_row_of_a_group_is_refused_with_its_number(tmp_path, change, says):
    with pytest.raises(BadInput, match=rf"rows\.parquet: row 2: {says}"):
        made(write(tmp_path, [LISTS[0], LISTS[0] | change], "parquet"))


def test_sources_without_groups_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"rows\.jsonl: no row"):
        made(write(tmp_path, [], "jsonl"))
    with pytest.raises(BadInput, match=r"rows\.jsonl: none of 1 queries .*positive_from"):
        made(write(tmp_path, PASSAGES[-1:], "jsonl"))
    with pytest.raises(BadInput, match=r"nowhere\.parquet: no such file"):
        made(tmp_path / "nowhere.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match=r"broken\.parquet: damaged"):
        made(tmp_path / "broken.parquet")
