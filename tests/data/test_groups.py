import json

import pytest
from typer.testing import CliRunner

from lwr.cli.app import app
from lwr.common.errors import BadInput
from lwr.common.json_lines import read_jsonl
from lwr.config.data import FlagEmbeddingSource
from lwr.data.collect import read
from lwr.data.groups import groups

LINE = {"query": "one", "pos": ["yes", "also"], "neg": ["no"]}
TAUGHT = LINE | {"pos_scores": [1, 0.5], "neg_scores": [-2.5]}


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def adopted(path, out):
    groups(FlagEmbeddingSource(kind="flag_embedding", path=str(path)), out)
    return list(read_jsonl(out, {}))


def test_a_folder_becomes_one_file_in_the_order_of_the_names(tmp_path):
    second = write(tmp_path / "in" / "b.jsonl", LINE | {"query": "b"})
    write(tmp_path / "in" / "a.jsonl", LINE | {"query": "a1"}, LINE | {"query": "a2", "prompt": "Is it?"})
    write(tmp_path / "in" / "notes.json", {"query": "not a line"})
    assert [row["query"] for row in adopted(tmp_path / "in", tmp_path / "groups.jsonl")] == ["a1", "a2", "b"]
    assert adopted(second, tmp_path / "groups.jsonl") == [LINE | {"query": "b"}]


def test_the_command_writes_the_groups(tmp_path):
    path = write(tmp_path / "in" / "a.jsonl", TAUGHT, TAUGHT)
    source = json.dumps({"kind": "flag_embedding", "path": str(path)})
    result = CliRunner().invoke(app, ["groups", "--source", source, "--out", str(tmp_path / "groups.jsonl")])
    assert result.exit_code == 0, result.output
    assert list(read_jsonl(tmp_path / "groups.jsonl", {})) == [TAUGHT, TAUGHT]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"query": "q", "pos": ["p"]}, "field 'neg' is missing"),
        (TAUGHT | {"query": " "}, "field 'query' has no text"),
        (TAUGHT | {"pos": "yes"}, "field 'pos' is 'yes'; make it a list"),
        (TAUGHT | {"neg": []}, "field 'neg' must be a list of one text or more"),
        (TAUGHT | {"neg": [1]}, "field 'neg' must be a list of one text or more"),
        (TAUGHT | {"prompt": ["Is it?"]}, "field 'prompt' is"),
        (TAUGHT | {"pos_scores": [1]}, "'pos_scores' must hold one number for each text of 'pos'"),
        (TAUGHT | {"neg_scores": None}, "'neg_scores' must hold one number for each text of 'neg'"),
        (TAUGHT | {"neg_scores": [True]}, "'neg_scores' must hold one number"),
        (TAUGHT | {"neg_scores": [1e39]}, "'neg_scores' must hold one number"),
        (LINE | {"pos_scores": None}, "lacks teacher scores, unlike the lines before"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, says):
    write(tmp_path / "in" / "a.jsonl", TAUGHT)
    path = write(tmp_path / "in" / "b.jsonl", TAUGHT, row)
    with pytest.raises(BadInput) as error:
        adopted(tmp_path / "in", tmp_path / "groups.jsonl")
    assert f"{path}:2: {says}" in str(error.value) or (f"{path}:2: field {says}" in str(error.value))
    assert not (tmp_path / "groups.jsonl").exists()


def test_nothing_to_adopt_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(BadInput, match=r"no \.jsonl file in this folder"):
        adopted(tmp_path / "in", tmp_path / "groups.jsonl")
    with pytest.raises(BadInput, match="no such file"):
        adopted(tmp_path / "a.jsonl", tmp_path / "groups.jsonl")
    with pytest.raises(BadInput, match="no group in it"):
        adopted(write(tmp_path / "a.jsonl"), tmp_path / "groups.jsonl")


def test_groups_are_no_collection():
    with pytest.raises(BadInput, match="`lwr groups` takes them"):
        read(FlagEmbeddingSource(kind="flag_embedding", path="groups.jsonl"))
