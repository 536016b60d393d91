"""Tests of `teachers` in a grid: what is refused before anything runs, and what the steps get."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import yaml
from grids import GRID, MODEL, grid
from transformers import AutoConfig, AutoModelForSequenceClassification

from lwr.common.errors import BadInput
from lwr.common.exits import Cell
from lwr.config.teachers.sections import CellTeacher, LayerwiseTeacher

COSINE = f"{{kind: bi_encoder, model: {MODEL}}}"


def cell(name: str, start_layer: int = 2, layer: int = 6, **others) -> str:
    """Return a teacher: a cell of the grid, by its variant."""
    point = {"base_model": "minilm", "start_layer": start_layer, "variant": name, "seed": 1}
    return yaml.safe_dump({"kind": "cell", "cell": point, "layer": layer} | others, default_flow_style=True)


def grid_with(teachers: dict[str, str], variants: dict[str, str] | None = None, text: str = GRID):
    """Load a grid with teachers, and with variants whose teachers are given."""
    sections = {name: yaml.safe_load(section) for name, section in teachers.items()}
    text += yaml.safe_dump({"teachers": sections})
    if variants is not None:
        taught = (
            f"  {name}: {{distillation: {{external: {teacher}}}}}\n" for name, teacher in variants.items()
        )
        text += "variants:\n  alone: {}\n" + "".join(taught)
    return grid(text)


def problem(*args, **kwargs) -> str:
    with pytest.raises(BadInput) as refused:
        grid_with(*args, **kwargs)
    return str(refused.value)


@pytest.mark.parametrize(
    ("teachers", "variants", "words"),
    [
        ({"big": COSINE}, {"taught": "bog"}, ["variants.taught.distillation.external", "bog", "`big`?"]),
        ({}, {"taught": "big"}, ["variants.taught.distillation.external", "big", "define it in `teachers`"]),
        ({"a": "{kind: bert, model: x/y}"}, None, ["teachers.a", "'bert'", "'cell'", "'yes_no'"]),
        ({"a": "{kind: bi_encoder, model: ./nowhere}"}, None, ["teachers.a.model", "./nowhere"]),
        ({"a": f"{{kind: cross_encoder, model: {MODEL}}}"}, None, ["teachers.a.model", "BertModel"]),
        ({"a": f"{{kind: yes_no, model: {MODEL}, no_token: blurgh}}"}, None, ["teachers.a.no_token", "'blurgh'"]),
        ({"a": f"{{kind: layerwise, model: {MODEL}, layer: 3}}"}, None, ["teachers.a.model", "no heads"]),
        ({"a": cell("alone").replace("minilm", "minilw")}, {}, ["a.cell.base_model", "`minilm`?"]),
        ({"a": cell("alone", start_layer=3)}, {}, ["a.cell.start_layer", "3", "use 2, 4"]),
        ({"a": cell("other")}, {}, ["a.cell.variant", "other", "use alone"]),
        ({"a": cell("alone").replace("seed: 1", "seed: 7")}, {}, ["a.cell.seed", "7", "use 1"]),
        ({"a": cell("alone", layer=7)}, {}, ["teachers.a.layer", "7 is not an exit", "2..6"]),
        ({"a": cell("alone", start_layer=4, layer=3)}, {}, ["teachers.a.layer", "3 is not an exit", "4..6"]),
        ({"a": cell("taught")}, {"taught": "a"}, ["teachers.a.cell", "minilm/start2/taught/seed1", "cycle"]),
        (
            {"a": cell("one"), "b": cell("two")},
            {"one": "b", "two": "a"},
            ["teachers.a.cell", "one/seed1, which learns from minilm/start2/two/seed1, which learns", "cycle"],
        ),
    ],
)  # fmt: skip
def test_wrong_teachers_are_refused(teachers, variants, words):
    message = problem(teachers, variants)
    assert all(word in message for word in words), message


def test_fused_scores_without_fusion_are_refused():
    message = problem({"a": cell("alone", fused=True)}, {}, GRID + "fusion: off\n")
    assert "teachers.a.fused: the grid has `fusion: off`" in message


def test_fused_scores_need_all_seeds_of_a_cell():
    """The weights of seed 1 are fitted on the scores of all seeds, of which seed 2 learns from seed 1."""
    two = GRID + "seeds: [1, 2]\n"
    teachers = {"a": cell("one", fused=True), "b": cell("alone")}
    assert grid_with(teachers, {"one": "b", "two": "a"}, two)
    assert "cycle" in problem(teachers | {"b": cell("two")}, {"one": "b", "two": "a"}, two)


def test_classifier_with_two_labels_is_refused(tmp_path):
    for labels in (1, 2):
        config = AutoConfig.for_model("bert", **tiny.SHAPE, num_labels=labels)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / str(labels))
    teachers = {
        f"t{labels}": f"{{kind: cross_encoder, model: {tmp_path / str(labels)}}}" for labels in (1, 2)
    }
    [line] = problem(teachers).splitlines()
    assert "teachers.t2.model" in line
    assert "has 2 labels, but a score is one number; give a model with one label" in line


def test_layer_without_a_head_of_a_layerwise_teacher_is_refused(tmp_path):
    tiny.build_reranker("llama").save_pretrained(tmp_path)
    message = problem({"a": f"{{kind: layerwise, model: {tmp_path}, layer: 1}}"})
    assert f"teachers.a.layer: 1 is not an exit of {tmp_path}; exits are 2..4" in message


def test_mining_cannot_use_a_cell_or_two_teachers(tmp_path):
    mining = GRID.replace("negatives: 3", "negatives: 3, teacher: a")
    assert "datasets.docs.mining.teacher: a is a cell" in problem({"a": cell("default")}, None, mining)
    assert "datasets.docs.mining.teacher: unknown teacher a" in problem({"b": COSINE}, None, mining)
    (tmp_path / "run.trec").touch()
    both = mining.replace("teacher: a", f"teacher: a, teacher_run: {tmp_path / 'run.trec'}")
    assert "`teacher` and `teacher_run` both name scores" in problem({"a": COSINE}, None, both)


def test_teacher_of_groups_made_elsewhere_is_refused(tmp_path):
    (tmp_path / "groups.jsonl").write_text("{}\n")
    source = (
        f"  given: {{source: {{kind: flag_embedding, path: {tmp_path / 'groups.jsonl'}}}, tests: [docs]}}\n"
    )
    text = GRID.replace("base_models:", source + "base_models:")
    message = problem({"a": COSINE}, {"taught": "a"}, text)
    assert "variants.taught.distillation.external: groups of given have no collection" in message
    mined = text.replace("tests: [docs]", "tests: [docs], mining: {teacher: a}")
    assert "datasets.given.mining.teacher: groups made elsewhere are not mined" in problem(
        {"a": COSINE}, None, mined
    )


def test_loss_of_teacher_scores_accepts_a_named_teacher():
    loss = GRID.replace("group_size: 4", "group_size: 4\n  loss: mse\n  distillation: {external: a}")
    assert grid_with({"a": COSINE}, None, loss).teacher_of("minilm", "default") == "a"


def test_cell_becomes_the_reranker_that_was_trained_for_it():
    mining = GRID.replace("negatives: 3", "negatives: 3, teacher: cosine")
    teachers = {
        "cosine": COSINE,
        "big": cell("alone", fused=True, precision="bfloat16", first_stage_weight=2),
    }
    config = grid_with(teachers, {"taught": "big"}, mining)
    assert config.taught() == [("docs", "cosine"), ("docs", "big")]
    big = config.teachers["big"]
    assert isinstance(big, CellTeacher)
    assert big.cell_of("docs") == Cell("docs", "minilm", 2, "alone", 1)
    assert big.as_layerwise(Path("model"), Path("fusion.json")) == LayerwiseTeacher(
        kind="layerwise",
        model="model",
        layer=6,
        fusion="fusion.json",
        precision="bfloat16",
        first_stage_weight=2,
    )
    with pytest.raises(BadInput, match=r"fused: True, and --fusion is None"):
        big.as_layerwise(Path("model"), None)
