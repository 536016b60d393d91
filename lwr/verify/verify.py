"""Verify that a results tree is what its steps wrote.

Every file is read. Model folders record a checksum of each of their files; tables and decisions record those of what
they were made of. Files that record nothing (runs, tables for people) are compared with what they follow from.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.json_lines import read_json
from lwr.common.results_tree import ResultsTree
from lwr.verify.cells import check_cells
from lwr.verify.collections import check_collections
from lwr.verify.leftovers import find_leftovers
from lwr.verify.tables import LayerMeans, check_tables
from lwr.verify.verdict import Checksums, Verdict


def verify(results: Path) -> Verdict:
    """Check every file of a results tree.

    Args:
        results: The folder that a grid wrote.

    Raises:
        BadInput: The folder holds no results.
    """
    tree = ResultsTree(results)
    if not any(path.is_dir() for path in (tree.collections, tree.cells, tree.tables)):
        raise BadInput(f"{results}: holds no collections, cells or tables; give the folder that a grid wrote")
    verdict, means = Verdict(notes=list(find_leftovers(tree))), LayerMeans()
    check_collections(tree, verdict)
    for path in tree.existing(tree.base_model("*")):
        verdict.check(path, _base_model_faults(path))
    check_cells(tree, Checksums(), means, verdict)
    check_tables(tree, means, verdict)
    return verdict


def _base_model_faults(path: Path) -> Iterator[str]:
    read_json(path, {"model": str, "layers": int, "fingerprint": str})
    yield from ()
