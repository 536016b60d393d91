"""Settings and fixtures of all tests: one thread per process, one seed per test, quiet libraries, shared inputs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

TESTS = Path(__file__).parent
SCIFACT = TESTS.parent.parent / "shared" / "data" / "scifact"

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _seed() -> None:
    transformers.set_seed(0)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Return the folder of checkpoints and of numbers that the upstream implementation computed."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def scifact_folder() -> Path:
    """Return the folder of BEIR's SciFact, which is not part of the repository."""
    if not SCIFACT.is_dir():
        pytest.skip(f"NOT TESTED: needs BEIR's SciFact (corpus.jsonl, queries.jsonl, qrels/) in {SCIFACT}")
    return SCIFACT


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    """Start a headless browser."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"NOT TESTED: none of {', '.join(names)} is on the path")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
