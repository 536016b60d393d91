"""The command line: manuals with examples that could run, and one-line errors."""

from __future__ import annotations

import re
import shlex

import pytest
import typer
from typer.testing import CliRunner

from lwr.cli.app import app, main
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
