"""The tiny grid, run once, and a copy of it that a test may edit."""

from __future__ import annotations

import shutil

import pytest
from project import Project, copy_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """The tiny grid, run once; look, don't touch."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    run = project.snakemake()
    (project.folder / "printed.txt").write_text(run.stdout + run.stderr, encoding="utf-8")
    return project


@pytest.fixture
def project(finished, tmp_path) -> Project:
    """A copy of the finished project, with times and Snakemake's memory, to change at will."""
    shutil.copytree(finished.folder, tmp_path / "project", copy_function=shutil.copy2)
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def scifact(scifact_folder, tmp_path_factory) -> Project:
    """config/scifact.yaml, run once: some minutes."""
    project = Project(copy_project(tmp_path_factory.mktemp("scifact")).folder, "config/scifact.yaml")
    (project.folder / "data").mkdir()
    (project.folder / "data/scifact").symlink_to(scifact_folder)
    project.snakemake()
    return project
