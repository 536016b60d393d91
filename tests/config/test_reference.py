"""Tests of the reference of the config: the schema, the README and the grids of this repository agree."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from grids import grid

from lwr.config.load import read
from lwr.config.reference.render import render_readme, schema

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "config").glob("*.yaml"))


def test_every_key_has_a_meaning():
    reference = schema()
    for section in [reference, *reference["$defs"].values()]:
        assert section["description"]
        for name, key in section["properties"].items():
            assert {"description", "$ref", "oneOf", "const"} & key.keys(), name


def test_the_first_grid_of_the_readme_is_valid():
    example = render_readme().split("```yaml\n")[1].split("```")[0]
    assert len(grid(example).cells()) == 2


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_the_grids_of_the_repository_are_valid(file, workflow_folder, monkeypatch):
    monkeypatch.chdir(workflow_folder)
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert read(file).cells()
    as_json = json.loads(json.dumps(yaml.safe_load(text)))  # where all keys are strings
    jsonschema.validate(as_json, schema())
