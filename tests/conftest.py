"""What every test starts from: one thread, one seed, quiet libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

GOLDEN = Path(__file__).parent.parent.parent / "shared" / "golden"

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _one_seed():
    transformers.set_seed(0)


@pytest.fixture
def golden() -> Path:
    """Folder of checkpoints and numbers that the upstream implementation computed."""
    if not GOLDEN.is_dir():
        pytest.skip(f"the upstream implementation's numbers lie beside the checkout, in {GOLDEN}: not there")
    return GOLDEN
