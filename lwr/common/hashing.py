"""Compute checksums of files, and hashes that order and split ids."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


def hash_share(key: str) -> float:
    """Map `key` to a number in [0, 1), evenly spread and equal on every machine.

    A key below the share `s` belongs to the fraction `s` of all keys. The number depends on the key alone, so a key
    keeps its place when other keys are added or removed.
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
