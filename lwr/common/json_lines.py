"""Read and write JSON, JSON lines and text lines, and check them while they are read."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput, shorten

TYPE_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a decimal number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
FLOAT32_LIMIT = 3.4028235677e38
"""Larger values round to infinity as float32."""


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON in UTF-8, atomically."""
    with atomic(path) as draft:
        draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line in UTF-8, atomically; gzipped if the name ends in `.gz`."""
    with atomic(path) as draft, _open(draft, "wb") as writer:
        for row in rows:
            writer.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read_jsonl(path: Path, required: dict[str, type]) -> Iterator[dict[str, Any]]:
    """Stream the objects of a JSON lines file; the n-th object comes from line n, counted from 1.

    Args:
        path: The file, plain or `.gz`.
        required: Field -> its exact type (True is not accepted as an `int`). Other fields pass unchecked.

    Raises:
        BadInput: A line is not an object with these fields, or `read_lines` refuses it.
    """
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{where}: {shorten(line)} is not JSON ({error}); write one object per line"
            ) from None
        if not isinstance(row, dict):
            raise BadInput(f"{where}: {shorten(line)} is not a JSON object; write one object per line")
        if "\\ud" in line.lower() and not is_utf8(json.dumps(row, ensure_ascii=False)):
            raise BadInput(f"{where}: half a surrogate pair, which UTF-8 cannot hold; remove that \\ud...")
        _check_fields(row, required, where)
        yield row


def read_json_rows(path: Path, required: dict[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the objects of a file of JSON lines, or read those of a file that is one JSON list.

    Args:
        path: The file, plain or `.gz`.
        required: As for `read_jsonl`.

    Yields:
        The place of an object, for errors, and the object.

    Raises:
        BadInput: As `read_jsonl`; or the list is not JSON, or one of its items is not an object with these fields.
    """
    if not _is_list(path):
        for number, row in enumerate(read_jsonl(path, required), 1):
            yield f"{path}:{number}", row
        return
    with _open(path, "rb") as reader:
        try:
            items = json.loads(reader.read().decode("utf-8-sig"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}: not a JSON list in UTF-8 ({error}); make or fetch it again") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadInput(f"{path}: broken gzip archive ({error}); fetch it again") from None
    for number, row in enumerate(items, 1):
        where = f"{path}: item {number} of the list"
        if not isinstance(row, dict):
            raise BadInput(f"{where}: {shorten(row)} is not a JSON object; write one object per item")
        if not is_utf8(json.dumps(row, ensure_ascii=False)):
            raise BadInput(f"{where}: half a surrogate pair, which UTF-8 cannot hold; remove that \\ud...")
        _check_fields(row, required, where)
        yield where, row


def _is_list(path: Path) -> bool:
    """Return whether the first character of a file that is not whitespace opens a list."""
    if not path.is_file():
        return False
    with _open(path, "rb") as reader:
        try:
            for line in reader:
                if text := line.removeprefix(codecs.BOM_UTF8).strip():
                    return text.startswith(b"[")
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return False  # `read_lines` reports the broken archive
    return False


def read_json(path: Path, required: dict[str, type]) -> dict[str, Any]:
    """Read the object of a JSON file.

    Args:
        path: The file.
        required: As for `read_jsonl`.

    Raises:
        BadInput: The file is missing, or is not an object with these fields.
    """
    check_file(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON in UTF-8 ({error}); make or fetch it again") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: {shorten(value)} is not a JSON object; make or fetch it again")
    _check_fields(value, required, str(path))
    return value


def _check_fields(row: dict[str, Any], required: dict[str, type], where: str) -> None:
    for field, expected in required.items():
        if field not in row:
            raise BadInput(f"{where}: field {field!r} is missing; add it ({TYPE_NAMES[expected]})")
        if type(row[field]) is not expected:
            problem = f"field {field!r} is {shorten(row[field])}"
            raise BadInput(f"{where}: {problem}; make it {TYPE_NAMES[expected]}")


def _refuse_constant(constant: str) -> None:
    """Refuse NaN and Infinity, which `json` accepts although JSON does not have them."""
    raise ValueError(f"{constant} is not a JSON number")


def check_file(path: Path) -> None:
    """Raise BadInput if there is no regular file at `path`: none, a folder, or a pipe."""
    if not path.is_file():
        raise BadInput(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Stream the lines of a UTF-8 text file, plain or `.gz`.

    Yields:
        The line number, counted from 1, and the line without its end. A byte order mark at the start of the file,
        which editors on Windows write, is skipped.

    Raises:
        BadInput: The file is missing or not UTF-8, the archive is broken, a line is blank, or a line further down
            starts with a byte order mark.
    """
    check_file(path)
    with _open(path, "rb") as reader:
        yield from decode_lines(reader, str(path))


def plain_or_gzipped(path: Path) -> Path:
    """Return `path`, or `path` with `.gz` if that is the file that exists.

    Raises:
        BadInput: Both exist.
    """
    archive = path.with_name(f"{path.name}.gz")
    if not archive.is_file():
        return path
    if path.is_file():
        raise BadInput(f"{path}: {archive.name} lies beside it; remove one of them")
    return archive


def decode_lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Decode a stream of lines as `read_lines` does; errors call the stream `name`."""
    number = 0
    try:
        for number, raw in enumerate(stream, 1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
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
        raise BadInput(f"{where}: a byte order mark inside the file, as if two were joined; remove it")
    if not line.strip():
        raise BadInput(f"{where}: a blank line; remove it")
    return line


@contextmanager
def _open(path: Path, mode: str) -> Iterator[IO[bytes]]:
    with path.open(mode) as plain:
        if path.suffix == ".gz":
            # The archive holds neither a name nor a time, so the same rows make the same bytes.
            with gzip.GzipFile("", mode, fileobj=plain, mtime=0) as archive:
                yield cast(IO[bytes], archive)
        else:
            yield plain


def is_utf8(text: str) -> bool:
    """Return whether `text` can be encoded as UTF-8; a lone surrogate cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
