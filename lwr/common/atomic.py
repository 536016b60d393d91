"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lwr.common.errors import BadInput

NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a fresh path beside `path` for a file or a folder; it becomes `path` if the block succeeds.

    What stood at `path` is replaced then, and only then: a file by a file, a folder by a folder (else OSError).
    On failure nothing is left behind.
    """
    make_parent_folder(path)
    draft = _draft_of(path)
    try:
        yield draft
        for file in draft.rglob("*") if draft.is_dir() else [draft]:
            if file.is_file():
                _to_disk(file)
        if draft.is_dir() and path.is_dir():  # os.replace puts nothing over a folder that holds files
            _remove(path)
        os.replace(draft, path)
    except OSError as error:
        if error.errno in NO_PLACE:
            raise _unchanged(error, path) from error
        raise
    finally:
        if draft.exists() or draft.is_symlink():  # a disk that can only be read would not say so again
            _remove(draft)


def make_parent_folder(path: Path) -> None:
    """The folder that `path` is to stand in. Raises BadInput where it stands in a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BadInput(
            f"{path}: {path.parent} is not a folder, or stands in a file; choose another path"
        ) from None


def check_writable(path: Path) -> None:
    """Raises BadInput or OSError at once where `atomic` would fail after hours."""
    make_parent_folder(path)
    draft = _draft_of(path)
    try:
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise _unchanged(error, path) from error


def _draft_of(path: Path) -> Path:
    """At its end stands the whole name: writers read the format off its suffix."""
    return path.with_name(f".draft-{secrets.token_hex(4)}-{path.name}")


def _unchanged(error: OSError, path: Path) -> OSError:
    """The error, naming what was to be written: by itself it names a draft, or nothing."""
    return OSError(error.errno, f"{os.strerror(error.errno)}; nothing was changed", str(path))


def _to_disk(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
