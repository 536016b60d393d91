"""Checksums of files, and hashes that order and split ids."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def hash_share(key: str) -> float:
    """A number in [0, 1) made of `key` alone (sha256): the same everywhere, blind to all else."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
