"""Embed the passages and queries of a collection with a bi-encoder, for dense first stages."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lwr.common.atomic import check_writable
from lwr.common.json_lines import write_json
from lwr.common.progress import Progress
from lwr.config.data.bi_encoder import BiEncoderSection
from lwr.formats.beir import read_corpus, read_queries
from lwr.formats.embeddings import (
    BLOCK_SIZE,
    DESCRIPTION,
    block_file,
    digest_texts,
    digest_vectors,
    write_vectors,
)
from lwr.scoring.bi_encoder import BiEncoder


def embed(collection: Path, settings: BiEncoderSection, out: Path, label: str = "embed") -> None:
    """Write the embeddings of a collection as a folder (see `lwr.formats.embeddings`).

    Memory holds the texts and the embeddings of one block of passages, and those of the queries. Finished blocks lie in
    a folder beside `out` until all are there; a step that was killed continues with the next block.

    Args:
        collection: Folder in BEIR layout.
        settings: The bi-encoder.
        out: The folder to write.
        label: Prefix of the progress lines.

    Raises:
        BadInput: The collection or the checkpoint cannot be read, or texts may be longer than it has positions.
        FloatingPointError: An embedding is not finite.
    """
    check_writable(out)
    description = {
        "settings": identify_model(settings),
        "files": settings.digest(),
        "block": BLOCK_SIZE,
        "inputs": digest_texts(collection),
    }
    digest = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:12]
    unfinished = out.parent / f"{out.name}.unfinished-{digest}"
    encoder = BiEncoder.load(settings)
    queries = list(read_queries(collection).values())
    passages = sum(1 for _ in read_corpus(collection))
    with Progress(label, len(queries) + passages, "texts") as progress:
        vectors = encoder.embed_queries(queries, progress.advance)
        write_vectors(unfinished / "queries.npy", vectors)
        for number, texts in enumerate(_read_blocks(collection)):
            file = block_file(unfinished, number)
            if file.is_file():
                progress.advance(len(texts))
            else:
                write_vectors(file, encoder.embed_passages(texts, progress.advance))
    counts = {"passages": passages, "queries": len(queries), "size": vectors.shape[1]}
    write_json(unfinished / DESCRIPTION, description | counts | {"sha256": digest_vectors(unfinished)})
    if out.exists():
        shutil.rmtree(out)
    os.replace(unfinished, out)


def identify_model(settings: BiEncoderSection) -> dict[str, str | int]:
    """Return the keys that embeddings depend on, which are not those of the size of a batch or of a search."""
    return settings.model_dump(include=set(BiEncoderSection.model_fields) - {"tokens_per_batch"})


def _read_blocks(collection: Path) -> Iterator[list[str]]:
    """Yield the texts of `BLOCK_SIZE` passages at a time."""
    texts = (passage.full_text for passage in read_corpus(collection, quiet=True))
    while block := list(islice(texts, BLOCK_SIZE)):
        yield block
