"""Groups made elsewhere are checked and copied."""

import json

import pytest
from typer.testing import CliRunner

from lwr.cli.app import app
from lwr.common.errors import BadInput
from lwr.common.json_lines import read_jsonl
from lwr.config.data import FlagEmbeddingSource
from lwr.data.collect import read_source
from lwr.data.groups import groups

LINE = {"query": "one", "pos": ["yes", "also"], "neg": ["no"]}
TAUGHT = LINE | {"pos_scores": [1, 0.5], "neg_scores": [-2.5]}


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def copied(path, out):
    groups(FlagEmbeddingSource(kind="flag_embedding", path=str(path)), out)
    return list(read_jsonl(out, {}))


def test_files_of_a_folder_are_joined_in_the_order_of_their_names(tmp_path):
    second = write(tmp_path / "in" / "b.jsonl", LINE | {"query": "b"})
    write(tmp_path / "in" / "a.jsonl", LINE | {"query": "a1"}, LINE | {"query": "a2", "prompt": "Is it?"})
    write(tmp_path / "in" / "notes.json", {"query": "not a line"})
    assert [row["query"] for row in copied(tmp_path / "in", tmp_path / "groups.jsonl")] == ["a1", "a2", "b"]
    assert copied(second, tmp_path / "groups.jsonl") == [LINE | {"query": "b"}]


def test_command_writes_the_groups(tmp_path):
    path = write(tmp_path / "in" / "a.jsonl", TAUGHT, TAUGHT)
    source = json.dumps({"kind": "flag_embedding", "path": str(path)})
    result = CliRunner().invoke(app, ["groups", "--source", source, "--out", str(tmp_path / "groups.jsonl")])
    assert result.exit_code == 0, result.output
    assert list(read_jsonl(tmp_path / "groups.jsonl", {})) == [TAUGHT, TAUGHT]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"query": "q", "pos": ["p"]}, ["'neg'", "missing"]),
        (TAUGHT | {"query": " "}, ["'query'", "no text"]),
        (TAUGHT | {"pos": "yes"}, ["'pos' is 'yes'", "a list"]),
        (TAUGHT | {"neg": []}, ["'neg'", "a list"]),
        (TAUGHT | {"neg": [1]}, ["'neg'", "a list"]),
        (TAUGHT | {"prompt": ["Is it?"]}, ["'prompt'"]),
        (TAUGHT | {"pos_scores": [1]}, ["'pos_scores'", "'pos'", "number"]),
        (TAUGHT | {"neg_scores": None}, ["'neg_scores'", "'neg'", "number"]),
        (TAUGHT | {"neg_scores": [True]}, ["'neg_scores'", "number"]),
        (TAUGHT | {"neg_scores": [1e39]}, ["'neg_scores'", "number", "float32"]),
        (LINE | {"pos_scores": None}, ["lacks teacher scores"]),
    ],
)
def test_bad_line_is_reported_with_file_and_number(tmp_path, row, says):
    write(tmp_path / "in" / "a.jsonl", TAUGHT)
    path = write(tmp_path / "in" / "b.jsonl", TAUGHT, row)
    with pytest.raises(BadInput) as error:
        copied(tmp_path / "in", tmp_path / "groups.jsonl")
    assert f"{path}:2: " in str(error.value)
    assert all(words in str(error.value) for words in says)
    assert not (tmp_path / "groups.jsonl").exists()


def test_source_without_groups_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(BadInput, match=r"no \.jsonl file"):
        copied(tmp_path / "in", tmp_path / "groups.jsonl")
    with pytest.raises(BadInput, match="no such file"):
        copied(tmp_path / "a.jsonl", tmp_path / "groups.jsonl")
    with pytest.raises(BadInput, match="no group"):
        copied(write(tmp_path / "a.jsonl"), tmp_path / "groups.jsonl")


def test_groups_cannot_be_collected():
    with pytest.raises(BadInput, match="lwr groups"):
        read_source(FlagEmbeddingSource(kind="flag_embedding", path="groups.jsonl"))
