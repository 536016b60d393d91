"""The task of CodeSearchNet from installed Python code: first sentence of a docstring -> its code.

Filters are CodeSearchNet's (Husain et al. 2019, section 2). A module belongs to one split and so do its
queries and passages: test searches only code of test modules, and nothing of it is seen in training.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share
from lwr.common.json_lines import is_utf8
from lwr.config.data import PythonDocsSource
from lwr.formats.beir import Collection, Passage, Qrels, Split

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
TEST_PART = re.compile(r"(^|_)(test|tests|testing)(_|$)")  # of a dotted name; not unittest, doctest
SECTION = r"(?:Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?):"
END_OF_PARAGRAPH = re.compile(rf"\n\s*(?:\n|[:@]\w|>>>|[-=~*+]{{3,}}|[-*] |\.\. |{SECTION})")
END_OF_SENTENCE = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)(?<!cf\.)\s+")
SIGNATURE = re.compile(r"^[\w.]+\(.*\)|->")  # some docstrings start with the call: that is code, no sentence
MIN_WORDS, MIN_LINES = 3, 3


@dataclass(frozen=True)
class Pair:
    """One definition: what is asked for and what answers it."""

    doc_id: str  # module:qualname, with #2 and so on for one defined again
    query: str
    code: str
    split: Split


def read(source: PythonDocsSource) -> Collection:
    """The collection of `source.packages`; the same code makes the same collection.

    Raises BadInput for a package that is not installed or has no Python code.
    """
    files = {module: path for package in source.packages for module, path in modules(package)}
    pairs = distinct(
        pair
        for module, path in sorted(files.items())
        for pair in read_module(path, module, split_of(module, source.dev_share, source.test_share))
    )
    qrels: dict[Split, Qrels] = {"train": {}, "dev": {}, "test": {}}
    for pair in pairs:
        qrels[pair.split][f"q:{pair.doc_id}"] = {pair.doc_id: 1}
    return Collection(
        (Passage(pair.doc_id, "", pair.code, pair.split) for pair in pairs),
        {f"q:{pair.doc_id}": pair.query for pair in pairs},
        qrels,
    )


def split_of(module: str, dev_share: float, test_share: float) -> Split:
    """The split of a module, by the hash of its dotted name."""
    at = hash_share(module)
    return "test" if at < test_share else "dev" if at < test_share + dev_share else "train"


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of the modules of `stdlib` or of an installed package, which is not imported.

    Left out: tests, and what lies in folders that no import can reach, such as site-packages.
    """
    for root, prefix in _roots(package):
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            inside = path.relative_to(root).with_suffix("").parts if root.is_dir() else ()
            parts = (*prefix, *inside)
            if all(part.isidentifier() and not TEST_PART.search(part) for part in parts):
                yield ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts), path


def _roots(package: str) -> list[tuple[Path, tuple[str, ...]]]:
    if package == "stdlib":
        return [(Path(sysconfig.get_path("stdlib")), ())]
    if not package.isidentifier():
        raise BadInput(f"packages: {package!r}; give top-level import names, such as sklearn, or stdlib")
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise BadInput(f"packages: {package!r} is not installed; pip install it or take it off the list")
    roots = [Path(folder) for folder in spec.submodule_search_locations or [str(spec.origin)]]
    if not all(root.is_dir() or root.suffix == ".py" for root in roots):
        raise BadInput(f"packages: {package!r} has no Python code ({spec.origin}); take it off the list")
    return [(root, (package,)) for root in roots]


def read_module(path: Path, module: str, split: Split) -> Iterator[Pair]:
    """The pairs of one file that pass the filters; none where it does not parse."""
    try:
        text = importlib.util.decode_source(path.read_bytes())
        with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = text.split("\n")
    times: Counter[str] = Counter()
    for qualname, node in definitions(tree):
        times[qualname] += 1
        name = qualname if times[qualname] == 1 else f"{qualname}#{times[qualname]}"
        query = summary(ast.get_docstring(node) or "")
        if _is_query(query) and not _is_special(node.name):
            code = code_of(node, lines)
            if sum(map(bool, code.split("\n"))) >= MIN_LINES and is_utf8(code):
                yield Pair(f"{module}:{name}", query, code, split)


def _is_query(query: str) -> bool:
    return len(query.split()) >= MIN_WORDS and query.isprintable() and not SIGNATURE.search(query)


def _is_special(name: str) -> bool:
    return "test" in name.lower() or (name.startswith("__") and name.endswith("__"))


def definitions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, Definition]]:
    """(qualname, node) of the functions, methods and classes under `node`; none that a function holds."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield f"{inside}{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from definitions(child, f"{inside}{child.name}.")
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from definitions(child, inside)


def summary(docstring: str) -> str:
    """The first sentence of a docstring on one line, without reStructuredText markup; "" if there is none."""
    text = END_OF_PARAGRAPH.split(f"{docstring.strip()}\n\n", maxsplit=1)[0]
    text = END_OF_SENTENCE.split(" ".join(text.split()), maxsplit=1)[0].replace("``", "`")
    text = re.sub(r":[\w:+-]+:(?=`)", "", text)  # :func:`name` -> `name`
    text = re.sub(r"`~?([^`<]+?)(?:\s*<[^`>]*>)?`_{0,2}", r"\1", text)  # `name`, `text <url>`_ -> text
    return re.sub(r"(?<![\w*|])(\*\*?|\|)(\w(?:[^*|]*[^*|\s])?)\1(?!\w)", r"\2", text)  # **b**, *i*, |subst|


def code_of(node: Definition, lines: list[str]) -> str:
    """The source of a definition, dedented: of a function all, of a class the outline without method bodies.

    A whole class would answer what is asked for its methods as well as they do, count as wrong, and fit into
    no reranker. Gone are bare strings: docstrings, its own and of what it holds, and notes under attributes;
    and decorators, in which libraries keep documentation.
    """
    first, indent = node.lineno - 1, node.col_offset
    kept = [line.encode() for line in lines[first : node.end_lineno]]  # ast counts columns in bytes
    for head, tail in sorted(_cuts(node, isinstance(node, ast.ClassDef)), key=_position, reverse=True):
        start, end = head.lineno - 1 - first, tail.end_lineno - 1 - first
        rest = kept[start][: head.col_offset] + kept[end][tail.end_col_offset :]
        kept[start : end + 1] = [rest] if rest.strip() else []
    dedented = [line[indent:] if not line[:indent].strip() else line for line in kept]
    return b"\n".join(line.rstrip() for line in dedented).strip().decode()


def _cuts(node: ast.AST, outline: bool) -> Iterator[tuple[ast.stmt, ast.stmt]]:
    """(first, last) statement of what is left out under `node`: bare strings; of outlines, method bodies."""
    for child in ast.iter_child_nodes(node):
        if outline and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child.body[0], child.body[-1]
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            if isinstance(child.value.value, str):
                yield child, child
        elif not isinstance(child, ast.expr):
            yield from _cuts(child, outline)


def _position(cut: tuple[ast.stmt, ast.stmt]) -> tuple[int, int]:
    return cut[0].lineno, cut[0].col_offset


def distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs sorted by id, without copies of code and without sentences that stand in several codes.

    Of copies the one in test stays, else in dev, so that evaluation does not lose queries to training and no
    copy of its code is trained on. Of different codes under one sentence none stays: it singles out none of
    them, and each would count as a wrong answer where it is right.
    """
    by_code: dict[str, Pair] = {}
    for pair in sorted(pairs, key=lambda pair: (("test", "dev", "train").index(pair.split), pair.doc_id)):
        by_code.setdefault(normalised(pair.code), pair)
    times = Counter(pair.query.lower() for pair in by_code.values())
    kept = [pair for pair in by_code.values() if times[pair.query.lower()] == 1]
    return sorted(kept, key=lambda pair: pair.doc_id)


def normalised(code: str) -> str:
    """What copies of a definition share: comments, whitespace, its name and capitalised names are gone."""
    code = re.sub(r"^(\s*(?:async\s+)?def|class)\s+\w+", r"\1 _", code)
    code = re.sub(r"\b_*[A-Z]\w*", "_", re.sub(r"#.*", "", code))
    return "".join(code.split())
