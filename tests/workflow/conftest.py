"""Grids that run once, and copies of them that a test may edit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from project import Project, copy_project, keep_one_cell


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """Run the tiny grid. Tests only read it."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    run = project.snakemake()
    (project.folder / "printed.txt").write_text(run.stdout + run.stderr, encoding="utf-8")
    return project


@pytest.fixture
def project(finished, tmp_path) -> Project:
    """Copy the finished grid, with its times and Snakemake's records, for a test to change."""
    return _copy(finished, tmp_path)


@pytest.fixture(scope="session")
def finished_cell(tmp_path_factory) -> Project:
    """Run a grid of one cell. Tests only read it."""
    project = copy_project(tmp_path_factory.mktemp("cell"))
    project.edit_config(keep_one_cell)
    project.snakemake()
    return project


@pytest.fixture
def cell(finished_cell, tmp_path) -> Project:
    """Copy the finished grid of one cell for a test to change."""
    return _copy(finished_cell, tmp_path)


def _copy(project: Project, folder: Path) -> Project:
    shutil.copytree(project.folder, folder / "project", copy_function=shutil.copy2)
    return Project(folder / "project")


@pytest.fixture(scope="session")
def scifact(scifact_folder, tmp_path_factory) -> Project:
    """Run config/scifact.yaml."""
    project = Project(copy_project(tmp_path_factory.mktemp("scifact")).folder, "config/scifact.yaml")
    (project.folder / "data").mkdir()
    (project.folder / "data/scifact").symlink_to(scifact_folder)
    project.snakemake()
    return project
