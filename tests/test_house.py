"""The house itself: floors, one list of dependencies, and what the README promises."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"__init__"},
    {"code_digest", "files", "gate", "launch", "memory", "progress", "provenance", "schedule"},
    {"checkpoint", "config", "dialects", "parquet"},
    {"config_errors"},
    {"measure_names", "upload", "yaml_source"},
    {"grid"},
    {"config_docs", "config_file", "beir", "group_lines", "trec"},
    {"bm25"},
    {"collect", "compare", "gather", "measures", "mine", "prompt", "replay", "retrieve", "sources"},
    {"base_model", "depth", "loss", "minicpm", "recompute", "tables", "whole"},
    {"packing"},
    {"layout"},
    {"batching", "saved"},
    {"advise", "export_encoder", "export_pair", "figure_data", "figure_style", "flops", "groups", "reranker"},
    {"cascade", "export_card", "figures", "score", "speed"},
    {"dev_look"},
    {"trainer"},
    {"card", "evaluate", "export", "report", "rerank", "train"},
    {"cost", "microbatch"},
    {"serve", "verify"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""What a room may import: rooms below its floor; on its own floor none but the few named in NEIGHBOURS."""
NEIGHBOURS = {("launch", "progress"), ("collect", "sources"), ("base_model", "minicpm")}


def rooms() -> list[Path]:
    return sorted((ROOT / "lwr").rglob("*.py"))


def imports_of(file: Path) -> set[str]:
    """The rooms that a file imports: `beir` for both `from lwr.beir import x` and `from lwr import beir`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "lwr":
            found |= {
                alias.name if (ROOT / "lwr" / f"{alias.name}.py").exists() else "__init__"
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lwr."):
            found.add(node.module.split(".")[1])
    return found


def room_of(file: Path) -> str:
    return file.stem if file.parent.name == "lwr" else file.parent.name


@pytest.mark.parametrize("file", rooms(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_room_imports_only_from_floors_below(file):
    floor_of = {room: floor for floor, names in enumerate(FLOORS) for room in names}
    room = room_of(file)
    for other in imports_of(file) - {room}:
        below = floor_of[other] < floor_of[room]
        assert below or (room, other) in NEIGHBOURS, f"{room} must not import {other}"


@pytest.mark.parametrize("file", rooms(), ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_in_the_library_knows_snakemake(file):
    assert not re.search(r"^\s*(import|from) snakemake", file.read_text(encoding="utf-8"), re.M)


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
