"""Hooks of mkdocs: formulas as MathML, and reference pages that are generated from lwr."""

from __future__ import annotations

import inspect
import re

import typer
from latex2mathml.converter import convert
from mkdocs.structure.files import File

from lwr.cli.app import app
from lwr.config.reference.render import render_readme


def on_files(files, config):
    """Add the generated pages."""
    files.append(File.generated(config, "reference/config.md", content=render_readme()))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def on_page_markdown(markdown, **_):
    """Convert formulas in GitHub's two notations: a fence with the language math, and $`…`$ in a line."""
    blocks = re.sub(
        r"^```math\n(.*?)^```$",
        lambda m: f"<div>{convert(m[1].strip(), display='block')}</div>",
        markdown,
        flags=re.M | re.S,
    )
    # in a span, because Markdown reads <math> at the start of a line as a block
    return re.sub(r"\$`(.+?)`\$", lambda m: f"<span>{convert(m[1])}</span>", blocks)


def commands() -> str:
    """Write the page of all commands, with the texts and options of `lwr COMMAND --help`."""
    group = typer.main.get_command(app)
    parts = [f"# Command line\n\n{inspect.cleandoc(group.help)}"]
    for name, command in group.commands.items():
        context = command.context_class(command, info_name=f"lwr {name}")
        rows = [parameter.get_help_record(context) for parameter in command.params]
        table = [f"| `{usage}` | {_cell(meaning)} |" for usage, meaning in rows]
        parts += [f"## lwr {name}", inspect.cleandoc(command.help)]
        parts.append("\n".join(["| option | meaning |", "|:--|:--|", *table]))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")
