"""The architecture: which package imports which, and how large folders are."""

from __future__ import annotations

import ast
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from lwr.common.code_digest import import_closure

LWR = Path(__file__).parent.parent / "lwr"
ORDER = (
    *(("common",), ("formats",), ("config",), ("data", "model"), ("scoring",), ("evaluation",)),
    *(("training", "reporting"), ("serving", "export"), ("verify",), ("cli",)),
)
"""A package imports itself and packages before its place; packages in one place do not import each other."""
ALLOWED = {
    package: {package, *chain.from_iterable(ORDER[:place])}
    for place, packages in enumerate(ORDER)
    for package in packages
}
ALLOWED |= {"compat": {*chain.from_iterable(ORDER[:-1])}, "__init__": set()}
MODULES = sorted(LWR.rglob("*.py"))


def package_of(file: Path) -> str:
    """Return the package of a module, or the module's own name if it lies directly in lwr/."""
    return file.relative_to(LWR).with_suffix("").parts[0]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(LWR)))
def test_imports_point_one_way(file):
    imported = {package_of(other) for other in import_closure(file) if other.parent != LWR}
    assert imported <= ALLOWED[package_of(file)]
    assert not re.search(r"^\s*(import|from) snakemake", file.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("file", sorted(LWR.glob("*/**/__init__.py")), ids=lambda file: file.parent.name)
def test_init_of_a_package_is_a_docstring_alone(file):
    [docstring] = ast.parse(file.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)


def test_folders_are_small():
    paths = [path for path in LWR.rglob("*") if "__pycache__" not in path.parts]
    sizes = Counter(path.parent.relative_to(LWR) for path in paths)
    assert sizes.pop(Path()) <= 17
    assert max(sizes.values()) <= 13, sizes
