"""Build a code search collection from installed Python packages: the first sentence of a docstring finds its code.

The task and the filters are those of CodeSearchNet (Husain et al. 2019, section 2). A module belongs to one split,
and so do its queries and passages: the test split searches only code of test modules, and training sees none of it.
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
from lwr.common.json_lines import is_utf8
from lwr.config.data.sources import PythonDocsSource
from lwr.data.sources.splits import split_of
from lwr.formats.beir import Collection, Passage, Qrels, Split

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
TEST_PART = re.compile(r"(^|_)(test|tests|testing)(_|$)")
"""Matches the parts of a dotted name that mark tests, but not unittest and doctest."""
SECTION = r"(?:Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?):"
END_OF_PARAGRAPH = re.compile(rf"\n\s*(?:\n|[:@]\w|>>>|[-=~*+]{{3,}}|[-*] |\.\. |{SECTION})")
END_OF_SENTENCE = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)(?<!cf\.)\s+")
SIGNATURE = re.compile(r"^[\w.]+\(.*\)|->")
"""Matches docstrings that start with the call, which is code and not a sentence."""
MIN_WORDS = 3  # of a query
MIN_LINES = 3  # of its code


@dataclass(frozen=True)
class DocumentedCode:
    """A definition as a query and the passage that answers it."""

    doc_id: str  # module:qualname; followed by #2, #3 ... if the name is defined again
    query: str
    code: str
    split: Split


def read(source: PythonDocsSource) -> Collection:
    """Build the collection of `source.packages`; the same code makes the same collection.

    Raises:
        BadInput: A package is not installed or has no Python code.
    """
    files = {module: path for package in source.packages for module, path in find_modules(package)}
    pairs = remove_duplicates(
        pair
        for module, path in sorted(files.items())
        for pair in read_pairs(path, module, split_of(module, source.dev_share, source.test_share))
    )
    qrels: dict[Split, Qrels] = {"train": {}, "dev": {}, "test": {}}
    for pair in pairs:
        qrels[pair.split][f"q:{pair.doc_id}"] = {pair.doc_id: 1}
    return Collection(
        (Passage(pair.doc_id, "", pair.code, pair.split) for pair in pairs),
        {f"q:{pair.doc_id}": pair.query for pair in pairs},
        qrels,
    )


def find_modules(package: str) -> Iterator[tuple[str, Path]]:
    """Find the modules of an installed package, or of `stdlib`, without importing them.

    Tests are left out, and so are files in folders that cannot be imported, such as site-packages.

    Yields:
        The dotted name and the file of a module.

    Raises:
        BadInput: The package is not installed or has no Python code.
    """
    for root, prefix in _package_roots(package):
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            inside = path.relative_to(root).with_suffix("").parts if root.is_dir() else ()
            parts = (*prefix, *inside)
            if all(part.isidentifier() and not TEST_PART.search(part) for part in parts):
                yield ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts), path


def _package_roots(package: str) -> list[tuple[Path, tuple[str, ...]]]:
    """Return the folders or files of a package, each with the first parts of the names of its modules."""
    if package == "stdlib":
        return [(Path(sysconfig.get_path("stdlib")), ())]
    if not package.isidentifier():
        raise BadInput(f"packages: {package!r}; give top-level import names, such as sklearn, or stdlib")
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise BadInput(f"packages: {package!r} is not installed; pip install it or remove it from the list")
    roots = [Path(folder) for folder in spec.submodule_search_locations or [str(spec.origin)]]
    if not all(root.is_dir() or root.suffix == ".py" for root in roots):
        raise BadInput(f"packages: {package!r} has no Python code ({spec.origin}); remove it from the list")
    return [(root, (package,)) for root in roots]


def read_pairs(path: Path, module: str, split: Split) -> Iterator[DocumentedCode]:
    """Yield the definitions of a file that pass the filters; none if the file cannot be parsed."""
    try:
        text = importlib.util.decode_source(path.read_bytes())
        with warnings.catch_warnings(action="ignore"):  # about invalid escapes in strings of that file
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = text.split("\n")
    seen: Counter[str] = Counter()
    for qualname, node in find_definitions(tree):
        seen[qualname] += 1
        name = qualname if seen[qualname] == 1 else f"{qualname}#{seen[qualname]}"
        query = first_sentence(ast.get_docstring(node) or "")
        if _is_query(query) and not _is_special(node.name):
            code = extract_code(node, lines)
            if sum(map(bool, code.split("\n"))) >= MIN_LINES and is_utf8(code):
                yield DocumentedCode(f"{module}:{name}", query, code, split)


def _is_query(query: str) -> bool:
    return len(query.split()) >= MIN_WORDS and query.isprintable() and not SIGNATURE.search(query)


def _is_special(name: str) -> bool:
    return "test" in name.lower() or (name.startswith("__") and name.endswith("__"))


def find_definitions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, Definition]]:
    """Find the functions, methods and classes under a node, except those inside a function.

    Yields:
        The qualified name, such as `Class.method`, and the node.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield f"{inside}{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from find_definitions(child, f"{inside}{child.name}.")
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from find_definitions(child, inside)


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring on one line, without reStructuredText markup; "" if there is none."""
    text = END_OF_PARAGRAPH.split(f"{docstring.strip()}\n\n", maxsplit=1)[0]
    text = END_OF_SENTENCE.split(" ".join(text.split()), maxsplit=1)[0].replace("``", "`")
    text = re.sub(r":[\w:+-]+:(?=`)", "", text)  # :func:`name` -> `name`
    text = re.sub(r"`~?([^`<]+?)(?:\s*<[^`>]*>)?`_{0,2}", r"\1", text)  # `name`, `text <url>`_ -> text
    return re.sub(r"(?<![\w*|])(\*\*?|\|)(\w(?:[^*|]*[^*|\s])?)\1(?!\w)", r"\2", text)  # **b**, *i*, |subst|


def extract_code(node: Definition, lines: list[str]) -> str:
    """Return the source of a definition, dedented, without docstrings and without its own decorators.

    A class is reduced to its outline, without the bodies of its methods. Complete, it would answer the queries of its
    methods as well as they do but count as a wrong answer, and it would be too long for a reranker. All bare strings
    are removed, which includes docstrings of inner definitions and of attributes. Its decorators are removed because
    some libraries keep documentation in them.

    Args:
        node: The definition.
        lines: The lines of its file.
    """
    first_line, indent = node.lineno - 1, node.col_offset
    kept = [line.encode() for line in lines[first_line : node.end_lineno]]  # ast counts columns in bytes
    cuts = sorted(_find_cuts(node, isinstance(node, ast.ClassDef)), key=_start_of, reverse=True)
    for head, tail in cuts:  # from the last to the first, so that the positions of those before stay valid
        start, end = head.lineno - 1 - first_line, (tail.end_lineno or tail.lineno) - 1 - first_line
        rest = kept[start][: head.col_offset] + kept[end][tail.end_col_offset :]
        kept[start : end + 1] = [rest] if rest.strip() else []
    dedented = [line[indent:] if not line[:indent].strip() else line for line in kept]
    return b"\n".join(line.rstrip() for line in dedented).strip().decode()


def _find_cuts(node: ast.AST, outline: bool) -> Iterator[tuple[ast.stmt, ast.stmt]]:
    """Yield the first and the last statement of each part to remove: bare strings, and in outlines method bodies."""
    for child in ast.iter_child_nodes(node):
        if outline and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child.body[0], child.body[-1]
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            if isinstance(child.value.value, str):
                yield child, child
        elif not isinstance(child, ast.expr):
            yield from _find_cuts(child, outline)


def _start_of(cut: tuple[ast.stmt, ast.stmt]) -> tuple[int, int]:
    return cut[0].lineno, cut[0].col_offset


def remove_duplicates(pairs: Iterable[DocumentedCode]) -> list[DocumentedCode]:
    """Return the pairs sorted by id, without copies of code and without ambiguous queries.

    Of several copies of code, the one in test is kept, or else the one in dev: evaluation then loses no query to
    training, and training sees no copy of code that is evaluated. If different code has the same query, all of it is
    removed: each would be a right answer that counts as a wrong one.
    """
    by_code: dict[str, DocumentedCode] = {}
    for pair in sorted(pairs, key=lambda pair: (("test", "dev", "train").index(pair.split), pair.doc_id)):
        by_code.setdefault(normalise_code(pair.code), pair)
    occurrences = Counter(pair.query.lower() for pair in by_code.values())
    kept = [pair for pair in by_code.values() if occurrences[pair.query.lower()] == 1]
    return sorted(kept, key=lambda pair: pair.doc_id)


def normalise_code(code: str) -> str:
    """Return what copies of code have in common: remove comments, whitespace, its name and capitalised names."""
    code = re.sub(r"^(\s*(?:async\s+)?def|class)\s+\w+", r"\1 _", code)
    code = re.sub(r"\b_*[A-Z]\w*", "_", re.sub(r"#.*", "", code))
    return "".join(code.split())
