"""Tests of the documentation: its commands, configs, links and Python are valid, and the tutorial runs."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml
from snakemake.cli import get_argument_parser

from lwr.cli.app import app
from lwr.config.consistency import problems_between_sections
from lwr.config.data.dataset import DatasetConfig, MiningConfig
from lwr.config.data.first_stage import FIRST_STAGES
from lwr.config.data.sources import GROUP_SOURCES
from lwr.config.evaluation import CascadeSearchConfig, CostConfig, FusionConfig, ScoringConfig
from lwr.config.grid import GridConfig
from lwr.config.load import PLACEHOLDERS, read_settings
from lwr.config.model import BaseModelConfig
from lwr.config.training import TrainingConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "config/README.md", *sorted(DOCS.rglob("*.md"))]
WRITTEN_BY_READERS = {"config/mine.yaml", "config/other.yaml"}
"""Files that the pages ask their readers to write."""

spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


def fences(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Return (language, text) of a page's fenced blocks in the given languages."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.M | re.S)
    return [(language, textwrap.dedent(block)) for _, language, block in found if language in languages]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- commands ------------------------------------------------------------------------------------------


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of each command on a page, without comments, which follow # or three spaces."""
    found = []
    for _, block in fences(page, "", "bash", "console"):
        for line in re.sub(r" *\\\n *", " ", block).splitlines():
            program, _, rest = line.removeprefix("$ ").partition(" ")
            if program in CHECKS:
                words = shlex.split(re.split(r"(?<=\S) {3,}", rest)[0], comments=True)
                ends = [place for place, word in enumerate(words) if word in ("&", "|", ">", "<")]
                found.append([program, *words[: min(ends, default=None)]])
    return found


def is_there(file: str) -> bool:
    return (ROOT / file).exists() or file in WRITTEN_BY_READERS


SECTIONS = {
    "collect --dataset": DatasetConfig,
    "mine --settings": MiningConfig,
    "base --base": BaseModelConfig,
    "train --base": BaseModelConfig,
    "train --settings": TrainingConfig,
    "score --settings": ScoringConfig,
    "fuse --settings": FusionConfig,
    "cascade --settings": CascadeSearchConfig,
    "cost --settings": CostConfig,
}


def check_lwr(name: str, *words: str) -> None:
    """Check options, types of values, required options, and the YAML of settings."""
    command = typer.main.get_command(app).commands[name]
    for parameter in command.params:  # models and collections of the pages do not exist here
        parameter.type_descriptor.parameter_info.exists = False
    command.make_context(name, list(words))
    for option, value in pairwise(words):
        if f"{name} {option}" == "groups --source":
            read_settings(value, *GROUP_SOURCES)
        if f"{name} {option}" in ("embed --settings", "retrieve --settings"):
            read_settings(value, *FIRST_STAGES)
        if section := SECTIONS.get(f"{name} {option}"):
            read_settings(value, section)
    if name == "check":
        assert is_there(words[0])


def check_snakemake(*words: str) -> None:
    arguments = get_argument_parser().parse_args(list(words))
    assert all(map(is_there, map(str, arguments.configfile or [])))
    assert all(is_there(f"{profile}/profile.yaml") for profile in arguments.profile or [])


def check_make(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


def check_python(script: str, *_: str) -> None:
    assert is_there(script)


def check_pip(install: str, *words: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [extras for word in words for extras in re.findall(r"^(?:lwr|\.)\[(.+)\]$", word)]
    asked = {extra for extras in listed for extra in extras.split(",")}
    assert install == "install"
    assert asked <= project["optional-dependencies"].keys()


CHECKS = {
    "lwr": check_lwr,
    "snakemake": check_snakemake,
    "make": check_make,
    "python": check_python,
    "pip": check_pip,
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_valid(page):
    for program, *words in commands_of(page):
        try:
            CHECKS[program](*words)
        except BaseException as error:  # argparse exits, click has errors of its own
            pytest.fail(f"{shlex.join([program, *words])}: {error!r} {error}")


@pytest.mark.parametrize(
    "wrong",
    [
        "lwr export --model m --layer 4",
        "lwr export --model m --layer four --out o",
        "lwr advise --budget 50",
        "lwr base --base '{modle: m}' --out o",
        "lwr check config/none.yaml",
        "lwr traim",
        "snakemake --cors 2",
        "snakemake --cores 2 --configfile config/none.yaml",
        "snakemake --profile workflow/profiles/none",
        "make coffee",
        "python benchmarks/none.py",
        "pip install 'lwr[none]'",
    ],
)
def test_invalid_commands_are_detected(tmp_path, wrong):
    page = tmp_path / "page.md"
    page.write_text(f"```bash\n{wrong}  # remark\n```\n", encoding="utf-8")
    [[program, *words]] = commands_of(page)
    with pytest.raises(BaseException):  # noqa: B017, PT011 - of any kind
        CHECKS[program](*words)


# --- configs, links, the site --------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_configs_are_valid(page):
    """Sections that a page leaves out are filled by STAND_INS."""
    for _, block in fences(page, "yaml"):
        grid = GridConfig.model_validate(PLACEHOLDERS | yaml.safe_load(block))
        assert problems_between_sections(grid) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_compiles(page):
    for _, block in fences(page, "python"):
        compile(block, name_of(page), "exec")


def generated() -> set[str]:
    """Return the pages that the hooks generate."""
    return {f"reference/{name}.md" for name in ("config", "commands")}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_have_targets(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        target = (page.parent / link.partition("#")[0]).resolve()
        made = target.is_relative_to(DOCS) and str(target.relative_to(DOCS)) in generated()
        assert re.match(r"https?:|#", link) or target.exists() or made, link


def pages_of(nav) -> list[str]:
    """Return the leaves of mkdocs.yml's nav."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages_of(part)]


def test_every_page_is_in_the_navigation():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert sorted(pages_of(settings["nav"])) == sorted(pages | generated())


def test_every_command_is_in_the_reference():
    text = hooks.commands()
    for name, command in typer.main.get_command(app).commands.items():
        section = text.split(f"\n## lwr {name}\n")[1].split("\n## ")[0]
        options = [parameter.opts[0] for parameter in command.params if parameter.opts[0].startswith("--")]
        assert [option for option in options if not re.search(rf"\| `(-\w, )?{option}\b", section)] == []


def test_formulas_become_mathml():
    page = (DOCS / "science.md").read_text(encoding="utf-8")
    shown = hooks.on_page_markdown(page)
    assert shown.count("<math") == page.count("```math") + page.count("$`") > 10
    assert "$`" not in shown
    assert "\\" not in shown


@pytest.mark.slow
def test_site_builds_and_loads_nothing_from_other_servers(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    for file in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?([^\"\s>]+)", file.read_text()
        )
        assert [url for url in loaded if url.startswith(("http", "//"))] == [], file


# --- the tutorial --------------------------------------------------------------------------------------


def script_of(page: Path) -> str:
    """Return a page's commands and Python as a shell script, in the order of the page."""
    parts = [
        block if language == "bash" else f"python - <<'PYTHON'\n{block}PYTHON\n"
        for language, block in fences(page, "bash", "python")
    ]
    return "".join(parts)


@pytest.mark.slow
def test_tutorial_runs(tmp_path):
    """Run the tutorial and two how-to pages in one folder, without the installation and with a free port."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for file in filter(lambda file: (ROOT / file).is_file(), files):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, tmp_path / file)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    tutorial = DOCS / "tutorial.md"
    install = fences(tutorial, "bash")[0][1]
    assert "pip install" in install
    pages = [tutorial, *(DOCS / f"how-to/own-{what}.md" for what in ("data", "base-model"))]
    script = "".join(map(script_of, pages)).removeprefix(install).replace("8000", port)
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    printed = run.stdout + run.stderr
    assert run.returncode == 0, printed
    for _, shown in fences(tutorial, "text"):
        assert shown in run.stdout
    assert "Nothing to be done" in printed
    assert '"relevance_score"' in run.stdout
    promised = set(re.findall(r"`((?:results|data)/[\w./-]+)`", tutorial.read_text(encoding="utf-8")))
    assert len(promised) >= 3
    assert [file for file in promised if not (tmp_path / file).exists()] == []
