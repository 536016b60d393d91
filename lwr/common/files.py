"""Files that appear whole or not at all, JSON lines checked on the way in, hashes that order and split."""

from __future__ import annotations

import codecs
import errno
import gzip
import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

KINDS = {
    **{str: "a string", int: "a whole number", float: "a decimal number", bool: "true or false"},
    **{list: "a list", dict: "an object"},
}


HIGHEST = 3.4028235677e38  # what lies above, rounds to no finite float32
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class BadInput(ValueError):
    """A file that cannot be used as it is: the message says where (`file:line`), what, and how to mend it."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a fresh path beside `path` for a file or a folder; it becomes `path` if the block succeeds.

    What stood at `path` is replaced then, and only then: a file by a file, a folder by a folder (else OSError).
    On failure nothing is left behind.
    """
    make_folder(path)
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


def make_folder(path: Path) -> None:
    """The folder that `path` is to stand in. Raises BadInput where it stands in a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BadInput(
            f"{path}: {path.parent} is not a folder, or stands in a file; choose another path"
        ) from None


def check_writable(path: Path) -> None:
    """Raises BadInput or OSError at once where `atomic` would fail after hours."""
    make_folder(path)
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


def write_json(path: Path, value: Any) -> None:
    """Indented, UTF-8. Whole or not at all."""
    with atomic(path) as draft:
        draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, UTF-8; gzipped where the name ends in `.gz`. Whole or not at all."""
    with atomic(path) as draft, _open(draft, "wb") as opened:
        for row in rows:
            opened.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read_jsonl(path: Path, required: dict[str, type]) -> Iterator[dict[str, Any]]:
    """Stream the objects of a JSON lines file, one a line: row *i* (from 1) stands on line *i*.

    `required`: field -> its exact type (`bool` is no `int`); other fields pass unchecked. Raises BadInput.
    """
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            row = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{where}: {_short(line)} is not JSON ({error}); write one object a line"
            ) from None
        if not isinstance(row, dict):
            raise BadInput(f"{where}: {_short(line)} is no JSON object; write one object a line")
        if "\\ud" in line.lower() and not is_utf8(json.dumps(row, ensure_ascii=False)):
            raise BadInput(f"{where}: half a surrogate pair, which UTF-8 cannot hold; remove that \\ud...")
        _check_fields(row, required, where)
        yield row


def read_json(path: Path, required: dict[str, type]) -> dict[str, Any]:
    """The object of a JSON file. required: as for `read_jsonl`. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON in UTF-8 ({error}); make or fetch it again") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: {_short(value)} is no JSON object; make or fetch it again")
    _check_fields(value, required, str(path))
    return value


def _check_fields(row: dict[str, Any], required: dict[str, type], where: str) -> None:
    for field, kind in required.items():
        if field not in row:
            raise BadInput(f"{where}: field {field!r} is missing; add it ({KINDS[kind]})")
        if type(row[field]) is not kind:
            raise BadInput(f"{where}: field {field!r} is {_short(row[field])}; make it {KINDS[kind]}")


def first_line(error: Exception) -> str:
    """Of what an error says; of one that says nothing its name."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Stream (number from 1, line without its end) of a UTF-8 text file, `.gz` or plain.

    A byte order mark at the start is passed over. Raises BadInput: no such file, not UTF-8, a byte order mark
    further down, a blank line, a broken archive.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    with _open(path, "rb") as opened:
        yield from decode_lines(opened, str(path))


def decode_lines(opened: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """The same of a stream, called `name` in what is raised."""
    number = 0
    try:
        for number, raw in enumerate(opened, 1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw  # what Windows' editors write
            yield number, _decode(line, f"{name}:{number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{name}:{number + 1}: broken gzip archive ({error}); fetch it again") from None


def _decode(raw: bytes, where: str) -> str:
    try:
        line = raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is {raw[error.start]:#x} ({error.reason})"
        raise BadInput(f"{where}: not UTF-8: {problem}; save the file as UTF-8") from None
    if line.startswith("\ufeff"):
        raise BadInput(f"{where}: a byte order mark inside the file, as where two were joined; remove it")
    if not line.strip():
        raise BadInput(f"{where}: a blank line; remove it")
    return line


@contextmanager
def _open(path: Path, mode: str) -> Iterator[IO[bytes]]:
    with path.open(mode) as opened:
        if path.suffix == ".gz":  # no name and no time in the archive: the same rows make the same bytes
            with gzip.GzipFile("", mode, fileobj=opened, mtime=0) as inside:
                yield inside
        else:
            yield opened


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_utf8(text: str) -> bool:
    """False where `text` holds a lone surrogate, which no file can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def hash_share(key: str) -> float:
    """A number in [0, 1) made of `key` alone (sha256): the same everywhere, blind to all else."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
