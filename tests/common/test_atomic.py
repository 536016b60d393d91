"""Files and folders appear complete or not at all."""

import os

import pytest

from lwr.common.atomic import atomic, check_writable
from lwr.common.errors import BadInput


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_half_a_file(path, error):
    with atomic(path) as draft:
        draft.write_text("half")
        raise error


def write_half_a_folder(path, error):
    with atomic(path) as draft:
        draft.mkdir()
        (draft / "half").touch()
        raise error


def test_atomic_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic(path) as draft:
        draft.write_text("new")
        assert not path.exists()
        assert draft.parent == path.parent
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


def test_draft_keeps_the_suffix(tmp_path):
    with atomic(tmp_path / "rows.jsonl.gz") as draft:
        assert draft.suffixes == [".jsonl", ".gz"]
        draft.touch()


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half_a_file(path, KeyboardInterrupt)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_folder_replaces_the_old_folder_completely(tmp_path):
    path = tmp_path / "model"
    for content in ("first", "second"):
        with atomic(path) as draft:
            (draft / "inner").mkdir(parents=True)
            (draft / "inner" / content).write_text(content)
    assert names(path / "inner") == ["second"]
    assert names(tmp_path) == ["model"]


def test_failed_write_keeps_the_old_folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(OSError, match="disk full"):
        write_half_a_folder(path, OSError("disk full"))
    assert names(path) == ["old"]
    assert names(tmp_path) == ["model"]


def test_file_never_replaces_a_folder(tmp_path):
    (tmp_path / "results" / "precious").mkdir(parents=True)
    with pytest.raises(OSError, match="results"), atomic(tmp_path / "results") as draft:
        draft.write_text("new")
    assert names(tmp_path) == ["results"]
    assert names(tmp_path / "results") == ["precious"]


def test_check_writable_leaves_no_file(tmp_path):
    check_writable(tmp_path / "deep/model")
    assert names(tmp_path / "deep") == []


def test_check_writable_refuses_a_folder_inside_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"file/model: .*not a folder"):
        check_writable(tmp_path / "file/model")


def test_a_link_to_a_file_stays_and_the_file_is_written(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    with atomic(link) as draft:
        draft.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.parametrize(
    "write", [lambda path: atomic(path).__enter__(), check_writable], ids=["atomic", "check"]
)
def test_a_pipe_is_not_replaced(tmp_path, write):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BadInput, match="pipe: not a regular file, and a file would replace it; name a file"):
        write(pipe)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
