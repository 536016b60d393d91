"""Dependencies: one list in pyproject.toml, pinned by both lock files and used by conda's environment."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKED_EXTRAS = ("demo", "dev", "docs", "lora", "report", "serve", "slurm", "workflow")
ONLY_ON_LINUX = re.compile("nvidia-|cuda-|triton$")
"""Dependencies of torch's build for GPUs, which only the hashed lock pins."""


def locked() -> dict[str, str]:
    """Return the specifier of each package in requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, lines)}


def declared() -> list[Requirement]:
    """Return the requirements of pyproject.toml and of its extras that are locked."""
    optional = [line for extra in LOCKED_EXTRAS for line in PROJECT["optional-dependencies"][extra]]
    requirements = map(Requirement, [*PROJECT["dependencies"], *optional])
    return list({str(each): each for each in requirements if each.name != "lwr"}.values())


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_lock_pins_an_allowed_version(requirement):
    pin = locked()[canonicalize_name(requirement.name)]
    assert re.fullmatch(r"==[\w.]+", pin)
    assert requirement.specifier.contains(pin.removeprefix("=="))


@pytest.mark.parametrize(
    "name", ["accelerate", "pandas", "peft", "pydantic", "snakemake", "torch", "transformers"]
)
def test_library_with_frequent_changes_has_lower_and_upper_bound(name):
    [requirement] = [requirement for requirement in declared() if requirement.name == name]
    assert {bound.operator for bound in requirement.specifier} == {">=", "<"}


def test_hashed_lock_pins_the_same_versions():
    text = (ROOT / "requirements.hashed.lock").read_text(encoding="utf-8")
    entries = re.findall(r"^(\S+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M)
    assert "".join(f"{name}=={version} \\\n{hashes}" for name, version, hashes in entries) == text
    pins = {canonicalize_name(name): f"=={version}" for name, version, _ in entries}
    assert {name: pin for name, pin in pins.items() if not ONLY_ON_LINUX.match(name)} == locked()


def test_conda_environment_installs_from_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, *_, from_pip = environment["dependencies"]
    assert from_pip == {"pip": ["--requirement requirements.lock", "--editable ."]}
    assert python == f"python{PROJECT['requires-python']}"
    versions = [line.removeprefix("Programming Language :: Python :: ") for line in PROJECT["classifiers"]]
    assert versions == ["3.11", "3.12", "3.13"]
