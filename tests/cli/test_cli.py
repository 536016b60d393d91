"""The command line: manuals with examples that could run, and one-line errors."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from lwr.cli.app import app, main
from lwr.cli.options import command_with_extra
from lwr.common.errors import BadInput
from lwr.config.load import read_settings
from lwr.config.training import TrainingConfig

COMMANDS = typer.main.get_command(app).commands


def test_the_overview_names_every_command():
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(re.search(rf"\b{name}\b", shown) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_manual_has_an_example_with_options_that_exist(name):
    manual = COMMANDS[name].help
    example = re.search(r"```\n(.*?)```", manual, re.DOTALL)
    assert example, f"lwr {name} --help has no example"
    words = shlex.split(example[1].replace("\\\n", " "))
    assert words[:2] == ["lwr", name]
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    own = words[: words.index("--")] if "--" in words else words
    assert {word for word in own if word.startswith("--")} <= known
    required = {p.opts[0] for p in COMMANDS[name].params if p.required and p.opts[0].startswith("--")}
    assert required <= set(own), "an example leaves out what is required"


def test_an_error_is_a_line_and_not_a_traceback(tmp_path, monkeypatch, capsys):
    arguments = [
        "collect",
        "--dataset",
        "{source: {kind: beir, path: nowhere}}",
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr("sys.argv", ["lwr", *arguments])
    monkeypatch.delenv("LWR_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith("lwr: ")
    assert "nowhere" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_mistyped_key_of_the_settings_is_named():
    with pytest.raises(ValueError, match="stepz"):
        read_settings("{stepz: 4}", TrainingConfig)


def test_the_overview_lists_commands_under_the_extra_that_they_need(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    panels = re.split(r"─ Commands( that need .*?)? ─", CliRunner().invoke(app, ["--help"]).output)
    listed = dict(zip(panels[1::2], panels[2::2], strict=True))
    assert re.search(r"^│ rerank ", listed[None], re.M)
    assert re.search(r"^│ train ", listed[" that need pip install 'lwr[workflow]'"], re.M)
    assert re.search(r"^│ serve ", listed[" that need pip install 'lwr[serve]'"], re.M)


def test_a_missing_extra_is_one_line():
    made = typer.Typer()

    @command_with_extra(made, "serve")
    def start() -> None:
        import no_such_package  # noqa: F401

    error = CliRunner().invoke(made, []).exception
    assert isinstance(error, BadInput)
    assert str(error) == "start needs no_such_package: pip install 'lwr[serve]'"


OF_EXTRAS = (
    *("accelerate", "altair", "fastapi", "ir_measures", "jinja2", "pandas", "peft", "pyarrow", "pytrec_eval"),
    *("scipy", "snakemake", "Stemmer", "tabulate", "uvicorn", "vl_convert"),
)
"""Packages that the core does not depend on; jinja2 is one of torch."""


def test_reranking_needs_no_extra(golden, tmp_path):
    passages = tmp_path / "passages.txt"
    passages.write_text("a passage\nanother passage\n")
    script = f"""
import sys
sys.modules.update(dict.fromkeys({OF_EXTRAS}))  # importing any of them raises ModuleNotFoundError
sys.argv[0] = "lwr"
from lwr.cli.app import main
main()
"""
    arguments = [
        "rerank",
        "--model",
        golden / "minicpm-layerwise-tiny",
        "--query",
        "a",
        "--passages",
        passages,
    ]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_init_writes_a_grid_into_a_new_or_empty_folder(tmp_path):
    grid = tmp_path / "grid"
    grid.mkdir()
    assert CliRunner().invoke(app, ["init", str(grid)]).exit_code == 0
    files = {str(file.relative_to(grid)) for file in grid.rglob("*") if file.is_file()}
    assert files >= {"config/config.yaml", "config/README.md", "config/schema.json", "workflow/Snakefile"}
    assert files >= {"workflow/profiles/default/profile.yaml", "workflow/profiles/slurm/profile.yaml"}


def test_init_refuses_a_folder_that_is_not_empty(tmp_path):
    (tmp_path / "notes.txt").touch()
    error = CliRunner().invoke(app, ["init", str(tmp_path)]).exception
    assert isinstance(error, BadInput)
    assert str(error) == f"{tmp_path}: is not empty; name a new folder"
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
