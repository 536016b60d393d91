"""JSON, JSON lines and text lines are read as they were written, or refused with their place."""

import gzip

import pytest

from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.common.json_lines import read_json, read_jsonl, read_lines, write_json, write_jsonl


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_survive_the_round_trip(tmp_path, name):
    rows = [{"_id": "1", "text": "über\u2028 \x0b\r\n"}, {"_id": "2", "text": "😀", "more": [1.5, None]}]
    write_jsonl(tmp_path / name, rows)
    assert list(read_jsonl(tmp_path / name, {"_id": str, "text": str})) == rows
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")


def test_json_survives_the_round_trip(tmp_path):
    write_json(tmp_path / "a.json", {"name": "über", "numbers": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json", {"name": str}) == {"name": "über", "numbers": [1, 2.5, None]}
    assert "über" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_same_rows_make_the_same_gzip_bytes(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        write_jsonl(tmp_path / folder / "rows.jsonl.gz", [{"a": 1}])
        # a gzip header may hold the time and the name of the draft
        monkeypatch.setattr("time.time", lambda: 1e9)
    assert sha256(tmp_path / "a" / "rows.jsonl.gz") == sha256(tmp_path / "b" / "rows.jsonl.gz")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"n": 1', ["not JSON"]),
        (b'{"n": NaN}', ["not JSON", "NaN"]),
        (b"[1]", ["not a JSON object"]),
        (b'{"m": 1}', ["'n'", "missing", "a whole number"]),
        (b'{"n": "1"}', ["'n' is '1'", "a whole number"]),
        (b'{"n": true}', ["'n' is True", "a whole number"]),
        (b'{"n": null}', ["'n' is None", "a whole number"]),
        (b'{"n": 1, "s": "\xff"}', ["not UTF-8", "byte 15", "0xff"]),
        (b"\xef\xbb\xbf" + b'{"n": 1}', ["byte order mark"]),
        (b"  ", ["blank line"]),
        (b'{"n": 1, "s": "\\uD83D"}', ["surrogate"]),
    ],
)
def test_bad_line_is_reported_with_file_and_number(tmp_path, line, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 0}\n' + line + b"\n")
    rows = read_jsonl(path, {"n": int})
    assert next(rows) == {"n": 0}
    with pytest.raises(BadInput) as error:
        next(rows)
    assert f"{path}:2: " in str(error.value)
    assert all(words in str(error.value) for words in says)


def test_surrogate_pairs_and_windows_line_ends_are_accepted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"s": "\\ud83d\\ude00"}\r\n')
    assert list(read_jsonl(path, {"s": str})) == [{"s": "😀"}]


def test_lines_are_numbered_from_one(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo")
    assert list(read_lines(tmp_path / "a.txt")) == [(1, "one"), (2, "two")]


def test_truncated_archive_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"n": 0}\n' * 1000)[:-12])
    with pytest.raises(BadInput, match=r"rows\.jsonl\.gz:\d+: .*gzip"):
        list(read_jsonl(path, {}))


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"none\.jsonl: no such file"):
        list(read_jsonl(tmp_path / "none.jsonl", {}))
    with pytest.raises(BadInput, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json", {})
    with pytest.raises(BadInput, match="not a regular file"):
        list(read_jsonl(tmp_path, {}))


def test_nothing_is_written_if_a_row_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}, {"a": float("nan")}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_byte_order_mark_at_the_start_is_skipped(tmp_path, name):
    data = b'\xef\xbb\xbf{"n": 1}\n{"n": 2}\n'
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert list(read_jsonl(tmp_path / name, {"n": int})) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", ["not JSON"]),
        (b'{"a": "\xff"}', ["not JSON in UTF-8"]),
        (b"[" * 100_000, ["not JSON"]),
        (b"[1]", ["not a JSON object"]),
        (b"{}", ["'a'", "missing"]),
        (b'{"a": 1}', ["'a' is 1", "a list"]),
    ],
)
def test_bad_json_file_is_reported(tmp_path, content, says):
    (tmp_path / "some.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"some\.json: ") as error:
        read_json(tmp_path / "some.json", {"a": list})
    assert all(words in str(error.value) for words in says)
