"""Compute a digest of the code that a step depends on, which changes only if the meaning of the code changes."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE_ROOT = Path(__file__).parent.parent


def code_digest(module: str) -> str:
    """Hash the code that a step depends on: its module and all modules of this package that it imports.

    Comments, docstrings, descriptions of config keys, the version of this package and other packages do not count.

    Args:
        module: Path of the step's module, relative to the package and without suffix, such as `training/train`.

    Returns:
        A hex digest (sha256).
    """
    digest = hashlib.sha256()
    for file in sorted(import_closure(PACKAGE_ROOT / f"{module}.py")):
        digest.update(f"{file.relative_to(PACKAGE_ROOT)}\n{_meaning(file)}\n".encode())
    return digest.hexdigest()


def import_closure(file: Path) -> set[Path]:
    """Return `file` and every file of this package that it imports, directly or indirectly, also inside functions."""
    found, waiting = set(), [file]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += _imported_files(current)
    return found


@cache
def _parsed(file: Path) -> ast.Module:
    """Return the syntax tree of a file, without the text that only people read."""
    return _WithoutProse().visit(ast.parse(file.read_bytes()))


def _imported_files(file: Path) -> Iterator[Path]:
    """Yield the files of this package that `file` itself imports. Imports are absolute in this package."""
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            yield from _files_of(name)


def _files_of(name: str) -> Iterator[Path]:
    """Yield the file of a module of this package and the `__init__.py` of each package around it."""
    top, *parts = name.split(".")
    if top != PACKAGE_ROOT.name:
        return
    for length in range(len(parts) + 1):
        folder = PACKAGE_ROOT.joinpath(*parts[:length])
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
        elif folder.with_suffix(".py").is_file():
            yield folder.with_suffix(".py")


@cache
def _meaning(file: Path) -> str:
    """Return the syntax tree of a file as text."""
    return ast.dump(_parsed(file))


class _WithoutProse(ast.NodeTransformer):
    """Transformer that removes all docstrings (attributes included) and the descriptions of config keys."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "Field":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "description"]
        return self.generic_visit(node)
