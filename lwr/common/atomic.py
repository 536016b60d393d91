"""Write files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lwr.common.errors import BadInput

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Error codes of a disk that is full or that refuses writes: the user can fix these."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a fresh path beside `path`, and rename it to `path` if the block succeeds.

    The block may create a file or a folder at the yielded path. A previous file at `path` is replaced only by a file,
    and a previous folder only by a folder; of a symbolic link to a file, the file that it names is. If the block fails,
    `path` keeps its previous content and the draft is removed.

    Raises:
        BadInput: `path` is a device, a pipe or a socket, or a file is in the way of its folder.
        OSError: The disk is full or read-only, or a file would replace a folder.
    """
    path = _find_target(path)
    make_parent_folder(path)
    draft = _draft_of(path)
    try:
        yield draft
        for file in draft.rglob("*") if draft.is_dir() else [draft]:
            if file.is_file():
                _flush_to_disk(file)
        if draft.is_dir() and path.is_dir():  # os.replace refuses to replace a folder that holds files
            _remove(path)
        os.replace(draft, path)
    except OSError as error:
        if error.errno in CANNOT_WRITE:
            raise _with_path(error, path) from error
        raise
    finally:
        # Without this check, removing a draft that was never created on a read-only disk would raise a second error.
        if draft.exists() or draft.is_symlink():
            _remove(draft)


def make_parent_folder(path: Path) -> None:
    """Create the folder that will contain `path`.

    Raises:
        BadInput: A file is in the way.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BadInput(
            f"{path}: {path.parent} is not a folder, or lies inside a file; choose another path"
        ) from None


def check_writable(path: Path) -> None:
    """Check now whether `atomic(path)` can write, before hours of work depend on it.

    Raises:
        BadInput: `path` is a device, a pipe or a socket, or a file is in the way of its folder.
        OSError: The disk refuses the write.
    """
    path = _find_target(path)
    make_parent_folder(path)
    draft = _draft_of(path)
    try:
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise _with_path(error, path) from error


def _find_target(path: Path) -> Path:
    """Return the path of the file that is written: where a symbolic link leads, or `path` itself.

    Raises:
        BadInput: There is a device, a pipe or a socket, which a file would replace.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise BadInput(f"{path}: not a regular file, and a file would replace it; name a file")
    return path.resolve() if path.is_symlink() and not path.is_dir() else path


def _draft_of(path: Path) -> Path:
    """Return a fresh path beside `path`; it keeps the suffix, from which writers derive the format."""
    return path.with_name(f".draft-{secrets.token_hex(4)}-{path.name}")


def _with_path(error: OSError, path: Path) -> OSError:
    """Return the error with the name of the output; the original one names the draft, or no file."""
    return OSError(error.errno, f"{error.strerror or error}; nothing was changed", str(path))


def _flush_to_disk(file: Path) -> None:
    with file.open("rb") as reader:
        os.fsync(reader.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
