"""Mini-collections in Chinese, Japanese and German, written for these tests: 24 passages and 12 queries each.

Query i (from 0) is answered by passage i. The other passages share words with these. Most words of a German query have
another form in the passage that answers it.
"""

from __future__ import annotations

from pathlib import Path

from lwr.common.json_lines import read_json
from lwr.formats.beir import Passage, write_collection

TEXTS = Path(__file__).with_suffix("")
SPLITS = {"train": range(4), "dev": range(4, 7), "test": range(7, 12)}

LANGUAGES = ("chinese", "japanese", "german")


def write_mini_collection(language: str, folder: Path) -> Path:
    """Write the collection of a language in BEIR layout."""
    texts = read_json(TEXTS / f"{language}.json", {"passages": list, "queries": list})
    corpus = [Passage(f"d{i}", "", text) for i, text in enumerate(texts["passages"])]
    qrels = {split: {f"q{i}": {f"d{i}": 1} for i in numbers} for split, numbers in SPLITS.items()}
    write_collection(folder, corpus, {f"q{i}": text for i, text in enumerate(texts["queries"])}, qrels)
    return folder
