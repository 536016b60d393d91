"""This workflow in the hands of others: as a module of another Snakefile, and in the catalog of workflows."""

from __future__ import annotations

from textwrap import indent

import pytest
import yaml
from project import ROOT, copy_project, keep_one_cell

from lwr.common.results_tree import ResultsTree

OTHER_SNAKEFILE = """\
import lwr as package


module lwr:
    snakefile:
        f"{package.__path__[0]}/workflow/Snakefile"
    prefix:
        "reranking"
    config:
        config["grid"]


use rule * from lwr as lwr_*


rule count:
    default_target: True
    input:
        rules.lwr_all.input,
    output:
        "rows.txt",
    shell:
        "wc --lines < reranking/results/test/tables/layers.csv > {output}"
"""


@pytest.mark.slow
def test_another_workflow_uses_this_one_as_a_module(tmp_path):
    project = copy_project(tmp_path)
    project.edit_config(keep_one_cell)
    config = tmp_path / project.config
    config.write_text("grid:\n" + indent(config.read_text(encoding="utf-8"), "  "), encoding="utf-8")
    (tmp_path / "Snakefile").write_text(OTHER_SNAKEFILE, encoding="utf-8")
    project.snakemake()
    results = tmp_path / "reranking" / "results" / "test"
    assert int((tmp_path / "rows.txt").read_text()) > 4
    assert ResultsTree(results).report.is_file()
    assert not project.results.exists()
    assert project.plan() == []


def test_catalog_of_workflows_finds_what_it_reads():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage.keys() <= {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["mandatory-flags"].keys() == {"desc", "flags"}
    assert usage["software-stack-deployment"] == {"conda": False, "apptainer": True, "apptainer+conda": False}
    assert (ROOT / "workflow" / "Snakefile").is_file()
    assert (ROOT / "config" / "README.md").is_file()
