"""Layerwise rerankers: train, measure and ship a relevance head at every layer of a transformer.

Example:
    >>> from lwr import LayerwiseReranker, Windows
    >>> reranker = LayerwiseReranker.from_pretrained("path/to/model")
    >>> reranker.rank("a query", ["a passage", "another passage"], layer=4)
    >>> reranker.rank("a query", ["a long document"], windows=Windows(overlap=32, most=4))
"""

import importlib
from typing import Any

_PUBLIC = {
    "LayerwiseReranker": "lwr.model.reranker",
    "Windows": "lwr.config.evaluation",
    "BiEncoderModel": "lwr.compat",
}
"""Name -> module. Named as text, and imported on first use: importing `lwr` loads nothing, and no code digest
(`lwr.common.code_digest`) follows these names."""

__all__ = ["BiEncoderModel", "LayerwiseReranker", "Windows"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lwr' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
