# The typed config, the paths of results/ as patterns, wildcard constraints, helpers of the rules, and code digests.

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from shlex import quote

import lwr
from lwr.common.code_digest import code_digest
from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.common.results_tree import WILDCARD_CELL, ResultsTree
from lwr.config.load import load

try:
    GRID = load(config, [Path(file) for file in workflow.configfiles])
except BadInput as error:
    raise WorkflowError(str(error)) from None

# Rules fail where any part of a pipe does. They call the `lwr` that is installed beside this Snakemake, activated or not;
# in a container (--sdm apptainer), that of the image.
IN_CONTAINER = "apptainer" in [str(method) for method in workflow.deployment_settings.deployment_method]
OWN_PATH = f'PATH={quote(str(Path(sys.executable).parent))}:"$PATH"; '
shell.prefix("set -euo pipefail; " + ("" if IN_CONTAINER else OWN_PATH))

# Where results lie: a bucket (`default-storage-prefix` in a profile), or this disk. What the config names by a path lies
# on the disk of every job, and is marked as `local` where it is an input.
BUCKET = workflow.storage_settings.default_storage_prefix

# Patterns of paths. {dataset} is the data set that a cell is trained on, {tested} the one that it ranks: most often the
# same. An arm is a cell without its seed.
TREE = ResultsTree(Path(GRID.results))
LOGS = str(TREE.logs)

CORPUS = str(TREE.corpus("{dataset}"))
QUERIES = str(TREE.queries("{dataset}"))
QRELS = str(TREE.qrels("{dataset}", "{split}"))
EMBEDDINGS = str(TREE.embeddings("{dataset}"))
RUN = str(TREE.run("{dataset}", "{split}"))
GROUPS = str(TREE.groups("{dataset}"))
TEACHER_RUN = str(TREE.teacher_run("{dataset}", "{teacher}"))
TEACHER_SHARD = str(TREE.teacher_shard("{dataset}", "{teacher}", "{shard}"))
BASE_MODEL = str(TREE.base_model("{base_model}"))

ARM = "{dataset}/{base_model}/start{start_layer}/{variant}"  # in the names of logs and lines of progress
CELL = f"{ARM}/seed{{seed}}"
MODEL = str(TREE.model(WILDCARD_CELL))
SCORES = str(TREE.scores(WILDCARD_CELL, "{tested}", "{split}"))
SHARD = str(TREE.score_shard(WILDCARD_CELL, "{tested}", "{split}", "{shard}"))
CALIBRATION = str(TREE.calibration(WILDCARD_CELL, "{tested}"))
MEASURES = str(TREE.measures(WILDCARD_CELL, "{tested}", "{split}"))
RUNS = str(TREE.runs(WILDCARD_CELL, "{tested}", "{split}"))
FUSION = str(TREE.fusion(WILDCARD_CELL, "{tested}"))
CASCADE = str(TREE.cascade(WILDCARD_CELL, "{tested}"))
FUSION_IF_ANY = [FUSION] if GRID.fusion else []  # `fusion: off`: no weights are fitted
PRECISION = str(TREE.precision(WILDCARD_CELL, "{tested}"))
IS_INT8 = GRID.score.precision == "int8"
COST = str(TREE.cost("{tested}"))

LAYERS_TABLE = [str(path) for path in TREE.table("layers")]
OTHER_TABLES = [str(path) for name in ("cost", "cascades", "calibration") for path in TREE.table(name)]
COMPARISONS = [str(path) for path in TREE.table("comparisons")]
RECOMMENDATION = str(TREE.recommendation)
FIGURE_FILES = [str(path) for path in TREE.figure_files()]
REPORT = str(TREE.report)
REPORTING = Path(lwr.__file__).parent / "reporting"


wildcard_constraints:
    dataset="[^/]+",
    base_model="[^/]+",
    start_layer=r"\d+",
    variant="[^/]+",
    seed=r"-?\d+",
    tested="[^/]+",
    teacher="[^/]+",
    split="train|dev|test",
    shard=r"\d+",


def wildcards_of(arm):
    """The values of a pattern's wildcards for an arm or a cell."""
    values = asdict(arm)
    return {"dataset": values.pop("trained_on"), **values}


def cell_paths(pattern, **fixed):
    """The path for every cell of the grid and every data set that it ranks."""
    return [
        pattern.format(**wildcards_of(cell), tested=tested, **fixed)
        for cell in GRID.cells()
        for tested in GRID.tests_of(cell.trained_on)
        if fixed.get("split") != "dev" or "dev" in GRID.splits_ranked(tested)
    ]


def arm_paths(pattern, with_dev_alone=False):
    """The path for every arm of the grid and every data set that it ranks, or those with dev queries alone."""
    return [
        pattern.format(**wildcards_of(arm), tested=tested)
        for arm in GRID.arms()
        for tested in GRID.tests_of(arm.trained_on)
        if not with_dev_alone or "dev" in GRID.splits_ranked(tested)
    ]


def cost_paths():
    """The file of costs for every data set that is ranked."""
    ranked = [tested for arm in GRID.arms() for tested in GRID.tests_of(arm.trained_on)]
    return [COST.format(tested=tested) for tested in dict.fromkeys(ranked)]


def of_ranking_arms(pattern, **fixed):
    """Input function: the path for every arm that ranks a data set; of its first seed where the path has a seed."""
    return lambda w: [
        pattern.format(**wildcards_of(arm), tested=w.tested, seed=GRID.seeds[0], **fixed)
        for arm in GRID.arms()
        if w.tested in GRID.tests_of(arm.trained_on)
    ]


def model_paths():
    """The folder of every trained model."""
    return [MODEL.format(**wildcards_of(cell)) for cell in GRID.cells()]


def across_seeds(pattern, **fixed):
    """The path for every seed of an arm."""
    return expand(pattern, seed=GRID.seeds, **fixed, allow_missing=True)


def first_seed(pattern, **fixed):
    """The path for the first seed, which represents its arm where one model is enough."""
    return expand(pattern, seed=GRID.seeds[0], **fixed, allow_missing=True)


def arm_of(w):
    """What identifies an arm, from the wildcards of a path."""
    arm = {"base_model": w.base_model, "start_layer": int(w.start_layer), "variant": w.variant}
    return {"trained_on": w.dataset, **arm}


def ranked_arm(w):
    """The columns that identify an arm in measures, cascades and costs: the data set that it ranks comes first."""
    return {"dataset": w.tested, **arm_of(w)}


def repeated_option(name, values):
    """An option of a command, once for each value."""
    return " ".join(f"{name} {quote(str(value))}" for value in values)


def ranked_collection(pattern, **fixed):
    """Input function: the path of a collection, for the data set that is ranked."""
    return lambda w: pattern.format(**{"dataset": w.tested, "split": w.get("split"), **fixed})


def of_choosing(pattern, w, **fixed):
    """The path for the data set on whose dev queries choices for the ranked one are made."""
    return pattern.format(**{**dict(w.items()), "tested": GRID.chosen_on(w.tested), "split": "dev", **fixed})


def choosing_scores(w):
    """The scores of every seed of an arm for these queries."""
    return [of_choosing(SCORES, w, seed=seed) for seed in GRID.seeds]


def choosing_collections(w, input):
    """The collection of these queries, if it is not the ranked one."""
    return [] if GRID.chosen_on(w.tested) == w.tested else [collection_of(input.dev_qrels)]


def choosing_precision(w):
    """The comparison of these scores with those in float32."""
    return of_choosing(PRECISION, w)


def choosing_qrels(w):
    """Their judgements."""
    return QRELS.format(dataset=GRID.chosen_on(w.tested), split="dev")


def dev_collection(pattern):
    """Input function: the path of a collection, for the data set on whose dev split training is evaluated."""
    return lambda w: pattern.format(dataset=GRID.tests_of(w.dataset)[0], split="dev")


def embeddings_of(w):
    """The embeddings that the first stage of a split searches; none for BM25 or a given run."""
    return (
        [EMBEDDINGS.format(dataset=w.dataset)] if GRID.datasets[w.dataset].needs_embeddings(w.split) else []
    )


def mining_teacher(w):
    """The run of the teacher whose scores mining uses; none without one."""
    mining = GRID.datasets[w.dataset].mining
    named = [] if mining.teacher is None else [TEACHER_RUN.format(dataset=w.dataset, teacher=mining.teacher)]
    return [local(mining.teacher_run)] if mining.teacher_run else named


def cell_teacher(w):
    """The run of the teacher whose scores a cell learns from; none without one."""
    teacher = GRID.teacher_of(w.base_model, w.variant)
    return [] if teacher is None else [TEACHER_RUN.format(dataset=w.dataset, teacher=teacher)]


def teaching_cell(w):
    """The model of the cell that teaches, and the weights of its fused scores; nothing for other teachers."""
    teacher = GRID.teachers[w.teacher]
    if teacher.kind != "cell":
        return []
    values = {**wildcards_of(teacher.cell_of(w.dataset)), "tested": GRID.tests_of(w.dataset)[0]}
    return [pattern.format(**values) for pattern in ([MODEL, FUSION] if teacher.fused else [MODEL])]


def teacher_files(w):
    """A digest of the files of a teacher that is a folder, so that other weights teach again."""
    teacher = GRID.teachers[w.teacher]
    return None if teacher.kind == "cell" else teacher.digest()


def any_of(names):
    """A wildcard constraint: one of these names; without names, what nothing matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


def threads_each(jobs):
    """Threads of each of the jobs of a rule: an equal share of the cores among those that can run at the same time.

    Not more jobs run at the same time than there are GPUs in --resources. Where an executor submits the jobs, Snakemake
    knows no number of cores, and `set-threads` in the profile decides. Threads are not in `params:`, so that another
    --cores runs nothing again.
    """
    cores, gpus = workflow.resource_settings.cores or 1, workflow.global_resources.get("gpu").value
    at_once = jobs if gpus is None else min(jobs, gpus)
    return max(1, cores // max(1, at_once))


def failures(text):
    """(rule, log file) of each job that failed, once, from what Snakemake printed."""
    found = re.findall(r"^Error in rule\s(\w+):.*?^    log: (\S+)", text, re.MULTILINE | re.DOTALL)
    return list(dict.fromkeys(found))


def place_of(path):
    """Where people find a file of the results: its address in the bucket, or its path."""
    return f"{BUCKET.rstrip('/')}/{path}" if BUCKET else str(path)


def folder_of(path):
    """The collection, or other folder, that a file of it lies in."""
    return str(Path(path).parent)


def collection_of(qrels):
    """The collection that judgements belong to."""
    return folder_of(folder_of(qrels))


def in_report(files, category):
    """Files that Snakemake's own report shows, too."""
    labels = {file: {"what": Path(file).stem, "format": Path(file).suffix[1:]} for file in files}
    text = "../report/layers.rst" if files == LAYERS_TABLE else None
    return [report(file, caption=text, category=category, labels=labels[file]) for file in files]


def as_json(section):
    """A slice of the config as the commands take it. It is in a rule's params, so that an edit of it causes reruns."""
    return json.dumps(section if isinstance(section, dict) else section.slice())


# An edit of the code in lwr/ re-runs the steps that import it, and no others; one of comments or docstrings, none.
MODULES = {
    "collect": "data/collect",
    "embed": "scoring/embed",
    "retrieve": "data/retrieve",
    "mine": "data/mine",
    "groups": "data/groups",
    "base": "model/base",
    "teach": "scoring/teach",
    "train": "training/train",
    "score": "scoring/score",
    "gather": "scoring/gather",
    "fuse": "evaluation/fuse",
    "precision": "evaluation/precision",
    "cascade": "evaluation/cascade",
    "cost": "evaluation/cost",
    "evaluate": "evaluation/evaluate",
    "calibrate": "evaluation/calibrate",
    "compare": "evaluation/compare",
    "tables": "reporting/tables",
    "advise": "reporting/advise",
    "figures": "reporting/figures",
    "report": "reporting/report",
}
CODE = {step: code_digest(module) for step, module in MODULES.items()}
