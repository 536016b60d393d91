# lwr: a grid of layerwise rerankers, from data to tables.
#
#   snakemake --cores 2                                       the quickstart grid (config/config.yaml)
#   snakemake --cores 2 --configfile config/other.yaml        another grid
#
# One cell: data.smk (collect, retrieve, mine) -> train.smk (base, train; teach.smk: teach) -> score.smk (score)
# -> choose.smk (cascade, cost) -> evaluate.smk (evaluate) -> report.smk (compare, tables, advise, figures, report).
# Every path of results/ is named in lwr/common/results_tree.py.

from snakemake.utils import min_version

min_version("9.27")

# Snakemake would merge a --configfile into this one, and grids would mix.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/teach.smk"
include: "workflow/rules/choose.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


# Models, scores and runs too, not the tables alone: what is lost is made again.
rule all:
    default_target: True
    input:
        model_paths(),
        cell_paths(SCORES, split="dev"),
        cell_paths(SCORES, split="test"),
        cell_paths(MEASURES, split="dev"),
        cell_paths(MEASURES, split="test"),
        cell_paths(RUNS, split="test"),
        LAYERS_TABLE,
        OTHER_TABLES,
        COMPARISONS,
        RECOMMENDATION,
        FIGURE_FILES,
        REPORT,


onsuccess:
    if Path(LAYERS_TABLE[1]).exists():  # not on this disk where results lie in a bucket
        print(Path(LAYERS_TABLE[1]).read_text())
        print(Path(RECOMMENDATION).read_text())
    print(f"Open {REPORT}: recommendation, figures and tables in one page, which works offline.")
    print(f"Tables: {TREE.tables}/   models, scores, runs, measures: {TREE.root}/cells/   logs: {LOGS}/")


onerror:
    print("What failed, and its log:")
    for rule, log_file in failures("".join(Path(file).read_text() for file in log)):
        print(f"  {rule}  {log_file}")
    print(
        "Fix it and run the same command again: finished steps stay, trainings go on from their checkpoints."
    )
