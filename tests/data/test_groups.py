"""Groups made elsewhere are checked and copied."""

import gzip
import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from lwr.cli.app import app
from lwr.common.errors import BadInput
from lwr.common.json_lines import read_jsonl
from lwr.config.data.sources import FlagEmbeddingSource
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
    write(tmp_path / "in" / "notes.txt", {"query": "not a line"})
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
    with pytest.raises(BadInput, match=r"no \.jsonl, \.json, .* file"):
        copied(tmp_path / "in", tmp_path / "groups.jsonl")
    with pytest.raises(BadInput, match="no such file"):
        copied(tmp_path / "a.jsonl", tmp_path / "groups.jsonl")
    with pytest.raises(BadInput, match="no group"):
        copied(write(tmp_path / "a.jsonl"), tmp_path / "groups.jsonl")


def test_groups_cannot_be_collected():
    with pytest.raises(BadInput, match="lwr groups"):
        read_source(FlagEmbeddingSource(kind="flag_embedding", path="groups.jsonl"))


def test_scored_rows_of_a_folder_are_written_as_groups(tmp_path, capsys):
    rows = [{"query": "q", "passage": text, "score": score} for text, score in (("a", 1.0), ("b", 0.25))]
    write(tmp_path / "in" / "a.jsonl", rows[0])
    pd.DataFrame(rows[1:]).to_parquet(tmp_path / "in" / "b.parquet")
    (tmp_path / "in" / "notes.txt").touch()
    source = json.dumps({"kind": "scored", "path": str(tmp_path / "in")})
    result = CliRunner().invoke(app, ["groups", "--source", source, "--out", str(tmp_path / "groups.jsonl")])
    assert result.exit_code == 0, result.output
    expected = {"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [1.0], "neg_scores": [0.25]}
    assert list(read_jsonl(tmp_path / "groups.jsonl", {})) == [expected]
    assert "notes.txt" in result.output


def test_unknown_kind_of_groups_is_refused_with_the_kinds(tmp_path):
    result = CliRunner().invoke(app, ["groups", "--source", "{kind: skored}", "--out", str(tmp_path / "x")])
    assert isinstance(result.exception, BadInput)
    assert "'skored'" in str(result.exception)
    assert "flag_embedding, scored, scored_hub" in str(result.exception)


def numbered(*numbers):
    return [LINE | {"query": f"q{number}"} for number in numbers]


def test_files_of_all_forms_in_a_folder_are_read_and_others_are_named(tmp_path, capsys):
    folder = tmp_path / "in"
    write(folder / "a.jsonl", *numbered(1))
    write(folder / "b.json", *numbered(2, 3))
    (folder / "c.json").write_text(json.dumps(numbered(4, 5), indent=2))
    for name, text in [("d.jsonl.gz", json.dumps(numbered(6)[0])), ("e.json.gz", json.dumps(numbered(7, 8)))]:
        (folder / name).write_bytes(gzip.compress(text.encode()))
    (folder / "README.md").write_text("about")
    (folder / "more.parquet").touch()
    (folder / "nested").mkdir()
    found = copied(folder, tmp_path / "groups.jsonl")
    assert [row["query"] for row in found] == [f"q{number}" for number in range(1, 9)]
    message = capsys.readouterr().err
    assert "5 files" in message
    assert "3 files or folders" in message
    assert "README.md, more.parquet, nested/" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"query": "q", "pos": ["p"], "neg": ["n"]}, {"query": "q", "pos": ["p"]}]', "item 2 .*'neg'"),
        ('[{"query": "q", "pos": ["p"], "neg": ["n"]}, 7]', "item 2 .*7"),
        ('[{"query": "q", "pos": ["p"], "neg": []}]', "item 1 .*'neg'"),
        ('[{"query": "q"', "not a JSON list"),
        ('[{"query": "q", "pos": ["p"], "neg": ["\\ud83d"]}]', "item 1 .*surrogate"),
        ("[]", "no group"),
    ],
)
def test_bad_list_is_reported(tmp_path, text, says):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=rf"a\.json: .*{says}"):
        copied(path, tmp_path / "groups.jsonl")


def test_file_beside_its_archive_is_refused(tmp_path):
    path = write(tmp_path / "in" / "a.jsonl", LINE)
    path.with_name("a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(BadInput, match=r"a\.jsonl\.gz .*remove one"):
        copied(tmp_path / "in", tmp_path / "groups.jsonl")


def test_groups_whose_negative_is_a_positive_are_counted(tmp_path, capsys):
    path = write(tmp_path / "in" / "a.jsonl", LINE, LINE | {"neg": ["no", " also\n"]})
    assert len(copied(path, tmp_path / "groups.jsonl")) == 2
    assert "1 groups have a negative with the text of a positive" in capsys.readouterr().err
