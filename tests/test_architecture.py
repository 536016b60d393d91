"""Tests of the architecture: which package imports which, how large folders are, and one list of dependencies."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lwr.common.code_digest import import_closure

ROOT = Path(__file__).parent.parent
ORDER = [
    *[["common"], ["formats"], ["config"], ["data", "model"], ["scoring"], ["evaluation"]],
    *[["training", "reporting"], ["serving", "export"], ["verify"], ["cli"]],
]
"""A package imports only from the packages before it; two that stand together do not import each other."""
ALLOWED = {
    package: {package, *chain.from_iterable(ORDER[:place])}
    for place, together in enumerate(ORDER)
    for package in together
} | {"compat": {*chain.from_iterable(ORDER[:-1])}, "__init__": set()}
MODULES = sorted((ROOT / "lwr").rglob("*.py"))


def top_level(file: Path) -> str:
    """Return the package of `lwr` that a file belongs to, or its own name where it is in none."""
    return file.relative_to(ROOT / "lwr").with_suffix("").parts[0]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT / "lwr")))
def test_imports_point_one_way(file):
    others = {top_level(other) for other in import_closure(file) if other.parent != ROOT / "lwr"}
    assert others <= ALLOWED[top_level(file)]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT / "lwr")))
def test_the_library_does_not_import_snakemake(file):
    assert not re.search(r"^\s*(import|from) snakemake", file.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "lwr").glob("*/**/__init__.py")), ids=lambda file: file.parent.name
)
def test_a_packages_init_holds_a_docstring_alone(file):
    [docstring] = ast.parse(file.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)


def test_the_tree_is_small_enough_to_read():
    entries = [
        path for path in (ROOT / "lwr").rglob("*") if path.name != "__pycache__" and path.suffix != ".pyc"
    ]
    per_folder = Counter(path.parent.relative_to(ROOT) for path in entries)
    assert per_folder.pop(Path("lwr")) <= 16
    assert max(per_folder.values()) <= 13, per_folder


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split("\n")
    return {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, filter(None, lines))}


def test_the_hashed_lock_pins_the_same_versions():
    text = (ROOT / "requirements.hashed.lock").read_text(encoding="utf-8")
    entries = re.findall(r"^(\S+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M)
    assert "".join(f"{name}=={version} \\\n{hashes}" for name, version, hashes in entries) == text
    only_on_linux = re.compile("nvidia-|cuda-|triton$")  # what torch's build for GPUs pulls in
    pins = {canonicalize_name(name): f"=={version}" for name, version, _ in entries}
    assert {name: pin for name, pin in pins.items() if not only_on_linux.match(name)} == locked()


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    optional = [line for name in ("dev", "docs", "serve", "slurm") for line in extras[name]]
    return [Requirement(line) for line in [*project["dependencies"], *optional]]


def test_the_lock_pins_every_declared_dependency():
    pins = locked()
    for requirement in declared():
        if requirement.name != "lwr":
            pin = pins[canonicalize_name(requirement.name)]
            assert re.fullmatch(r"==[\w.]+", pin)
            assert requirement.specifier.contains(pin.removeprefix("=="))
    assert pins["torch"] == "==2.13.0"


def test_conda_users_get_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, *_, from_pip = environment["dependencies"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert from_pip == {"pip": ["--requirement requirements.lock", "--editable ."]}
    assert project["requires-python"] == ">=3.11,<3.12"
    assert python == "python=3.11"
