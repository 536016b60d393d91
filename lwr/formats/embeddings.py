"""Write and read the embeddings of a collection: a folder of .npy files and a JSON file that says what they are.

    embeddings.json         the model and its settings, the number of texts, sha256 of corpus.jsonl, queries.jsonl and
                            of each .npy file
    queries.npy             float32 [queries, H], in the order of queries.jsonl
    passages/00000.npy …    float32 [passages, H], in the order of corpus.jsonl; BLOCK_SIZE in each but the last

H is the hidden size of the model. Each row has the length 1, so that a product of two rows is their cosine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.common.json_lines import plain_or_gzipped, read_json

BLOCK_SIZE = 10_000
"""Passages in a file."""
DESCRIPTION = "embeddings.json"


def digest_texts(collection: Path) -> dict[str, str]:
    """Return the sha256 of the files of a collection that are embedded."""
    return {name: sha256(plain_or_gzipped(collection / f"{name}.jsonl")) for name in ("corpus", "queries")}


def block_file(folder: Path, number: int) -> Path:
    """Return the file of a block of passages, counted from 0."""
    return folder / "passages" / f"{number:05}.npy"


def digest_vectors(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file with vectors, by its path in the folder."""
    return {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(folder.rglob("*.npy"))}


def write_vectors(path: Path, vectors: np.ndarray) -> None:
    """Write vectors, float32 [texts, H], atomically."""
    with atomic(path) as draft, draft.open("wb") as writer:
        np.save(writer, vectors)


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of a collection, as a folder whose passages are read block by block."""

    folder: Path
    description: dict[str, Any]

    def read_queries(self) -> np.ndarray:
        """Read the vectors of the queries, float32 [queries, H]. Raises BadInput: the file does not fit."""
        return self._read_vectors(self.folder / "queries.npy", self.description["queries"])

    @property
    def block_count(self) -> int:
        """The number of blocks of passages."""
        return -(-self.description["passages"] // BLOCK_SIZE)

    def read_blocks(self) -> Iterator[np.ndarray]:
        """Stream the vectors of the passages, float32 [≤ BLOCK_SIZE, H]. Raises BadInput: a file does not fit."""
        for number in range(self.block_count):
            rows = min(BLOCK_SIZE, self.description["passages"] - number * BLOCK_SIZE)
            yield self._read_vectors(block_file(self.folder, number), rows)

    def _read_vectors(self, path: Path, rows: int) -> np.ndarray:
        shape = (rows, self.description["size"])
        try:
            vectors = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadInput(f"{path}: cannot be read as embeddings ({error}); run `lwr embed` again") from None
        if vectors.shape != shape or vectors.dtype != np.float32:
            found = f"{vectors.dtype} {list(vectors.shape)}"
            raise BadInput(f"{path}: holds {found} in place of float32 {list(shape)}; run `lwr embed` again")
        if not np.isfinite(vectors).all():
            raise BadInput(f"{path}: holds numbers that are not finite; run `lwr embed` again")
        return vectors


def read_embeddings(folder: Path) -> Embeddings:
    """Read what embeddings are of.

    Raises:
        BadInput: There are none, or the description lacks a field.
    """
    fields = {"settings": dict, "passages": int, "queries": int, "size": int, "inputs": dict, "sha256": dict}
    return Embeddings(folder, read_json(folder / DESCRIPTION, fields))
