# The typed config, every path of results/ (named here once), wildcard constraints, and code digests.

import json
import re
import sys
from pathlib import Path
from shlex import quote

import lwr
from lwr.config.load import load
from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.common.code_digest import code_digest

try:
    GRID = load(config, [Path(file) for file in workflow.configfiles])
except BadInput as error:
    raise WorkflowError(str(error)) from None

# Rules call the `lwr` that is installed beside this Snakemake, activated or not; and fail where any part of a pipe does.
shell.prefix(f'set -euo pipefail; PATH={quote(str(Path(sys.executable).parent))}:"$PATH"; ')

RESULTS = GRID.results
LOGS = f"{RESULTS}/logs"

COLLECTION = f"{RESULTS}/collections/{{dataset}}"
CORPUS = f"{COLLECTION}/corpus.jsonl"
QUERIES = f"{COLLECTION}/queries.jsonl"
QRELS = f"{COLLECTION}/qrels/{{split}}.tsv"
RUN = f"{COLLECTION}/runs/{{split}}.trec"
GROUPS = f"{COLLECTION}/groups.jsonl"

BASE_MODEL = f"{RESULTS}/base_models/{{base_model}}.json"

# An arm is a cell without its seed: seeds are repetitions of it.
ARM = "{dataset}/{base_model}/start{start_layer}/{variant}"
ARMS = f"{RESULTS}/cells/{ARM}"
CELL = f"{ARM}/seed{{seed}}"
CELLS = f"{RESULTS}/cells/{CELL}"
MODEL = f"{CELLS}/model"
# {tested}: the data set that is ranked; most often the one that was trained on.
SCORES = f"{CELLS}/scores/{{tested}}/{{split}}.parquet"
SHARD = f"{CELLS}/scores/{{tested}}/{{split}}.shards/{{shard}}.parquet"
MEASURES = f"{CELLS}/measures/{{tested}}/{{split}}.parquet"
RUNS = f"{CELLS}/runs/{{tested}}/{{split}}"
CASCADE = f"{ARMS}/cascade/{{tested}}.json"
COST = f"{ARMS}/cost/{{tested}}.json"

TABLES = f"{RESULTS}/tables"
LAYERS_TABLE = [f"{TABLES}/layers.{kind}" for kind in ("csv", "md", "tex")]
OTHER_TABLES = [f"{TABLES}/{name}.{kind}" for name in ("cost", "cascades") for kind in ("csv", "md")]
COMPARISONS = [f"{TABLES}/comparisons.{kind}" for kind in ("csv", "md")]
RECOMMENDATION = f"{TABLES}/recommendation.md"
FIGURES = f"{RESULTS}/figures"
FIGURE_FILES = [
    f"{FIGURES}/{name}.{kind}"
    for name in ("quality", "gain", "flops", "latency", "wins", "training")
    for kind in ("html", "svg", "png", "json")
]
REPORT = f"{RESULTS}/report.html"
REPORT_TEMPLATE = Path(lwr.__file__).parent / "reporting/report.html"


wildcard_constraints:
    dataset="[^/]+",
    base_model="[^/]+",
    start_layer=r"\d+",
    variant="[^/]+",
    seed=r"-?\d+",
    tested="[^/]+",
    split="train|dev|test",
    shard=r"\d+",


def of_each_cell(template, **fixed):
    """The path for every cell of the grid and every data set that it ranks."""
    return [
        template.format(**vars(cell), tested=tested, **fixed)
        for cell in GRID.cells()
        for tested in GRID.tests_of(cell.dataset)
    ]


def of_each_arm(template):
    """The path for every arm of the grid and every data set that it ranks."""
    return [
        template.format(**vars(arm), tested=tested)
        for arm in GRID.arms()
        for tested in GRID.tests_of(arm.dataset)
    ]


def of_each_training(template):
    return [template.format(**vars(cell)) for cell in GRID.cells()]


def of_seeds(template, **fixed):
    """The path for every seed of an arm."""
    return expand(template, seed=GRID.seeds, **fixed, allow_missing=True)


def of_first_seed(template, **fixed):
    """The path for the seed that stands for its arm where one is enough."""
    return expand(template, seed=GRID.seeds[0], **fixed, allow_missing=True)


def arm_of(w):
    """How measures, cascades and costs name an arm; its data set is the one that is ranked."""
    return {
        "dataset": w.tested,
        "trained_on": w.dataset,
        "base_model": w.base_model,
        "start_layer": int(w.start_layer),
        "variant": w.variant,
    }


def options(name, values):
    """An option of a command, once for each value."""
    return " ".join(f"{name} {quote(str(value))}" for value in values)


def of_tested(template, **fixed):
    """Input function: the path of a collection, for the data set that is ranked."""
    return lambda w: template.format(**{"dataset": w.tested, "split": w.get("split"), **fixed})


def of_dev(template):
    """Input function: the path of a collection, for the data set that training looks at."""
    return lambda w: template.format(dataset=GRID.tests_of(w.dataset)[0], split="dev")


def one_of(names):
    """A wildcard constraint: one of these names; of none, what nothing matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


def failures(text):
    """(rule, log file) of each job that failed, once, from what Snakemake printed."""
    found = re.findall(r"^Error in rule\s(\w+):.*?^    log: (\S+)", text, re.MULTILINE | re.DOTALL)
    return list(dict.fromkeys(found))


def folder_of(path):
    """The collection, or other folder, that a file of it lies in."""
    return str(Path(path).parent)


def collection_of(qrels):
    """The collection that judgements belong to."""
    return folder_of(folder_of(qrels))


def shown(files, category):
    """Files that stand in Snakemake's own report, too."""
    labels = {file: {"what": Path(file).stem, "format": Path(file).suffix[1:]} for file in files}
    text = "../report/layers.rst" if files == LAYERS_TABLE else None
    return [report(file, caption=text, category=category, labels=labels[file]) for file in files]


def settings(section):
    """A slice of the config as the commands take it; where it stands in params, its edits cause reruns."""
    return json.dumps(section if isinstance(section, dict) else section.slice())


# An edit of the code in lwr/ re-runs the steps that import it, and no others; one of comments or docstrings, none.
MODULES = {
    "collect": "data/collect",
    "retrieve": "data/retrieve",
    "mine": "data/mine",
    "groups": "data/groups",
    "base": "formats/checkpoint",
    "train": "training/train",
    "score": "scoring/score",
    "gather": "scoring/gather",
    "cascade": "evaluation/cascade",
    "cost": "evaluation/cost",
    "evaluate": "evaluation/evaluate",
    "tables": "reporting/tables",
    "advise": "reporting/advise",
    "figures": "reporting/figures",
    "report": "reporting/report",
}
CODE = {step: code_digest(module) for step, module in MODULES.items()}
