import gzip

import pytest

from lwr.common.atomic import atomic, check_writable
from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share, sha256
from lwr.common.json_lines import read_json, read_jsonl, write_jsonl


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_half(path, error):
    with atomic(path) as draft:
        draft.write_text("half")
        raise error


def write_half_a_folder(path, error):
    with atomic(path) as draft:
        draft.mkdir()
        (draft / "half").touch()
        raise error


def test_an_atomic_file_appears_at_the_end_and_alone(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic(path) as draft:
        draft.write_text("new")
        assert not path.exists()
        assert draft.parent == path.parent
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path, KeyboardInterrupt)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_atomic_folder_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "model"
    for content in ("first", "second"):
        with atomic(path) as draft:
            (draft / "inner").mkdir(parents=True)
            (draft / "inner" / content).write_text(content)
    assert names(path / "inner") == ["second"]
    assert names(tmp_path) == ["model"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(OSError, match="disk full"):
        write_half_a_folder(path, OSError("disk full"))
    assert names(path) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_file_never_replaces_a_folder(tmp_path):
    (tmp_path / "results" / "precious").mkdir(parents=True)
    with pytest.raises(OSError, match="results"):
        write_jsonl(tmp_path / "results", [{"a": 1}])
    assert names(tmp_path) == ["results"]
    assert names(tmp_path / "results") == ["precious"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_survive_the_round_trip(tmp_path, name):
    rows = [{"_id": "1", "text": "über\u2028 \x0b\r\n"}, {"_id": "2", "text": "😀", "more": [1.5, None]}]
    write_jsonl(tmp_path / name, rows)
    assert list(read_jsonl(tmp_path / name, {"_id": str, "text": str})) == rows
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")


def test_the_same_rows_make_the_same_gzip_bytes(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        write_jsonl(tmp_path / folder / "rows.jsonl.gz", [{"a": 1}])
        monkeypatch.setattr("time.time", lambda: 1e9)  # an archive keeps the time, if one lets it
    # nor the draft's random name
    assert sha256(tmp_path / "a" / "rows.jsonl.gz") == sha256(tmp_path / "b" / "rows.jsonl.gz")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"n": 1', "is not JSON"),
        (b"[1]", "no JSON object"),
        (b'{"m": 1}', "field 'n' is missing; add it (a whole number)"),
        (b'{"n": "1"}', "field 'n' is '1'; make it a whole number"),
        (b'{"n": true}', "field 'n' is True; make it a whole number"),
        (b'{"n": null}', "field 'n' is None; make it a whole number"),
        (b'{"n": 1, "s": "\xff"}', "not UTF-8: byte 15 is 0xff"),
        (b"\xef\xbb\xbf" + b'{"n": 1}', "byte order mark"),
        (b"  ", "a blank line; remove it"),
        (b'{"n": 1, "s": "\\uD83D"}', "half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path, line, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 0}\n' + line + b"\n")
    rows = read_jsonl(path, {"n": int})
    assert next(rows) == {"n": 0}
    with pytest.raises(BadInput) as error:
        next(rows)
    assert f"{path}:2: " in str(error.value)
    assert says in str(error.value)


def test_a_whole_surrogate_pair_and_windows_line_ends_are_fine(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"s": "\\ud83d\\ude00"}\r\n')
    assert list(read_jsonl(path, {"s": str})) == [{"s": "😀"}]


def test_a_cut_archive_and_a_missing_file_are_bad_input(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"n": 0}\n' * 1000)[:-12])
    with pytest.raises(BadInput, match="broken gzip archive"):
        list(read_jsonl(path, {}))
    with pytest.raises(BadInput, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl", {}))


def test_nothing_is_written_where_a_row_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}, {"a": float("nan")}])
    assert names(tmp_path) == []


def test_hash_share_is_fixed_and_spread_evenly():
    assert hash_share("a") == int("ca978112ca1b", 16) / 2**48
    shares = [hash_share(str(i)) for i in range(2000)]
    assert abs(sum(share < 0.3 for share in shares) / 2000 - 0.3) < 0.03


def test_a_byte_order_mark_at_the_start_is_passed_over(tmp_path):
    for name, pack in (("rows.jsonl", bytes), ("rows.jsonl.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(b'\xef\xbb\xbf{"n": 1}\n{"n": 2}\n'))
        assert list(read_jsonl(tmp_path / name, {"n": int})) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not JSON in UTF-8"),
        (b'{"a": "\xff"}', "not JSON in UTF-8"),
        (b"[" * 100_000, "not JSON in UTF-8"),
        (b"[1]", "no JSON object"),
        (b"{}", "field 'a' is missing"),
        (b'{"a": 1}', "field 'a' is 1; make it a list"),
    ],
)
def test_json_that_cannot_be_used_is_named(tmp_path, content, says):
    (tmp_path / "some.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"some\.json: ") as error:
        read_json(tmp_path / "some.json", {"a": list})
    assert says in str(error.value)


def test_what_cannot_be_written_is_known_at_once(tmp_path):
    check_writable(tmp_path / "deep/model")
    assert names(tmp_path / "deep") == []
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is not a folder, or stands in a file"):
        check_writable(tmp_path / "file/model")
