"""Draw docs/rules.svg and docs/packages.svg with Graphviz: `make drawings`, after a rule or an import has changed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from lwr.common.code_digest import import_closure

ROOT = Path(__file__).parent.parent
Edges = set[tuple[str, str]]

STYLE = """
rankdir=%s; bgcolor=white; pad=0.2; nodesep=0.3; ranksep=0.45;
node [shape=box, style="rounded,filled", fillcolor="#e8eaf6", color="#3f51b5", fontname="sans-serif", fontsize=12];
edge [color="#888888", arrowsize=0.7];
"""


def rule_edges() -> Edges:
    """Return (rule, rule that uses its output) of the quickstart grid, as Snakemake reports them; `all` aside."""
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "dot"]
    graph = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rules = dict(re.findall(r'(\d+)\[label = "(\w+)"', graph))
    edges = {(rules[a], rules[b]) for a, b in re.findall(r"(\d+) -> (\d+)", graph)}
    return {edge for edge in edges if edge[1] != "all"}


def package_edges() -> Edges:
    """Return (package, package that imports it) of lwr/, imports through other modules included."""
    package = ROOT / "lwr"
    files = {
        folder.name: list(folder.rglob("*.py"))
        for folder in package.iterdir()
        if (folder / "__init__.py").is_file()
    }
    return {
        (other.relative_to(package).parts[0], name)
        for name, own in files.items()
        for file in own
        for other in import_closure(file)
        if other.parent != package and other.relative_to(package).parts[0] != name
    }


def dot(edges: Edges, direction: str) -> str:
    """Return an SVG of the edges, without those that follow from others."""
    lines = "".join(f'"{a}" -> "{b}";\n' for a, b in sorted(edges))
    graph = f"digraph {{\n{STYLE % direction}{lines}}}"
    reduced = subprocess.run(["tred"], input=graph, capture_output=True, text=True, check=True).stdout
    return subprocess.run(["dot", "-Tsvg"], input=reduced, capture_output=True, text=True, check=True).stdout


def drawn_edges(svg: str) -> Edges:
    """Return the edges of an SVG that `dot` made."""
    return set(re.findall(r"<title>(\w+)&#45;&gt;(\w+)</title>", svg))


if __name__ == "__main__":
    (ROOT / "docs/rules.svg").write_text(dot(rule_edges(), "LR"), encoding="utf-8")
    (ROOT / "docs/packages.svg").write_text(dot(package_edges(), "BT"), encoding="utf-8")
