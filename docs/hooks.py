"""What the site shows beside docs/*.md: formulas as MathML, and what is generated from lwr itself."""

from __future__ import annotations

import inspect
import re

import griffe
import typer
from latex2mathml.converter import convert
from mkdocs.structure.files import File

from lwr.cli.app import app
from lwr.config import reference


def on_files(files, config):
    files.append(File.generated(config, "reference/config.md", content=reference.render_readme()))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def on_page_markdown(markdown, **_):
    """GitHub's two ways to write a formula: a fence called math, and $`…`$ in a line."""
    blocks = re.sub(
        r"^```math\n(.*?)^```$",
        lambda m: f"<div>{convert(m[1].strip(), display='block')}</div>",
        markdown,
        flags=re.M | re.S,
    )
    # in a span: Markdown takes <math> at the start of a line for a block
    return re.sub(r"\$`(.+?)`\$", lambda m: f"<span>{convert(m[1])}</span>", blocks)


def commands() -> str:
    """Every command with its manual and its options, as `lwr COMMAND --help` has them."""
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


class Parameters(griffe.Extension):
    """In the docstring of a function, a line `name: what it is` about a parameter becomes an item of a list."""

    def on_function(self, *, func: griffe.Function, **_):
        if func.docstring:
            names = "|".join(re.escape(parameter.name) for parameter in func.parameters)
            func.docstring.value = re.sub(
                rf"^((?:{names})(?:, (?:{names}))*): ", r"\n- **\1**: ", func.docstring.value, flags=re.M
            )
