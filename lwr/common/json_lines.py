"""JSON, JSON lines and text lines, checked while they are read."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput

TYPE_NAMES = {
    **{str: "a string", int: "a whole number", float: "a decimal number", bool: "true or false"},
    **{list: "a list", dict: "an object"},
}
FLOAT32_LIMIT = 3.4028235677e38  # what lies above, rounds to no finite float32


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
            raise BadInput(f"{where}: field {field!r} is missing; add it ({TYPE_NAMES[kind]})")
        if type(row[field]) is not kind:
            raise BadInput(f"{where}: field {field!r} is {_short(row[field])}; make it {TYPE_NAMES[kind]}")


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
