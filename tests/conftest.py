"""What every test starts from: one thread, one seed, quiet libraries."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from xdist.scheduler import LoadScopeScheduling

BESIDE = Path(__file__).parent.parent.parent / "shared"

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()


class OneWorkflow(LoadScopeScheduling):
    """With several workers, all tests of the workflow go to one: the grid that they look at runs once."""

    def _split_scope(self, nodeid: str) -> str:
        return "workflow" if "workflow/" in nodeid else nodeid


def pytest_xdist_make_scheduler(config, log):
    return OneWorkflow(config, log)


@pytest.fixture(autouse=True)
def _one_seed():
    transformers.set_seed(0)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of checkpoints and numbers that the upstream implementation computed."""
    folder = BESIDE / "golden"
    if not folder.is_dir():
        pytest.skip(f"the upstream implementation's numbers lie beside the checkout, in {folder}: not there")
    return folder


@pytest.fixture(scope="session")
def scifact_folder() -> Path:
    """BEIR's SciFact."""
    folder = BESIDE / "data" / "scifact"
    if not folder.is_dir():
        pytest.skip(f"BEIR's SciFact lies beside the checkout, in {folder}: not there")
    return folder


@pytest.fixture(scope="module")
def chromium():
    """A headless browser, for pages that people open."""
    where = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if where is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield browser
        browser.close()
