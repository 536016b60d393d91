"""Out of memory, said so that it can be mended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def out_of_memory_hint(fix: str) -> Iterator[None]:
    """Whatever in the block does not fit into memory, ends in MemoryError with `fix`; other errors stay as they are."""
    try:
        yield
    except RuntimeError as error:
        # a CPU's allocator has no error of its own
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(f"out of memory: {fix}") from error
        raise
