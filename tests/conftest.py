"""Settings and fixtures of all tests: one thread, one seed, quiet libraries; order and deadline of the slow tests."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

TESTS = Path(__file__).parent
SCIFACT = TESTS.parent.parent / "shared" / "data" / "scifact"

DEADLINE = float(os.environ.get("LWR_TEST_DEADLINE", "inf"))
"""Seconds since the epoch after which no test begins: .ci/run sets it from LWR_CI_MINUTES."""
LEFT_OUT = "left out: no time left (LWR_CI_MINUTES)"
SLOW_ORDER = ("training", "reporting", "export", "serving", "workflow", "slurm", "test_docs")
"""Folders and files of slow tests, the ones that find most per minute first; others come before them."""

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the slow tests in the order of SLOW_ORDER; drop nightly tests unless -m names them."""
    items.sort(key=_slow_rank)
    if "nightly" not in config.option.markexpr:
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]


def _slow_rank(item: pytest.Item) -> int:
    part = item.path.relative_to(TESTS).with_suffix("").parts[0]
    slow = item.get_closest_marker("slow") is not None
    return SLOW_ORDER.index(part) if slow and part in SLOW_ORDER else -1


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Skip a test that would begin after the deadline."""
    if time.time() > DEADLINE:
        pytest.skip(LEFT_OUT)


def pytest_terminal_summary(terminalreporter) -> None:
    """List the tests that the deadline left out."""
    skipped = terminalreporter.stats.get("skipped", [])
    for report in skipped:
        if LEFT_OUT in str(report.longrepr):
            terminalreporter.write_line(f"left out: {report.nodeid}")


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
