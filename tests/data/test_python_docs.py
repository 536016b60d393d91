"""Docstrings of installed packages become queries, and their code becomes passages."""

import ast
import sys
import textwrap

import pytest

from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.config.data.dataset import DatasetConfig
from lwr.config.data.sources import PythonDocsSource
from lwr.data.collect import collect as collect_dataset
from lwr.data.sources.python_docs import (
    DocumentedCode,
    find_definitions,
    find_modules,
    first_sentence,
    read_pairs,
    remove_duplicates,
)
from lwr.data.sources.splits import split_of
from lwr.formats.beir import SPLITS, read_corpus, read_qrels, read_queries


def collect(source, out):
    collect_dataset(DatasetConfig(source=source), out)


def write(path, code):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(code), encoding="utf-8")


def pairs_of(tmp_path, code):
    write(tmp_path / "module.py", code)
    return {pair.doc_id: pair for pair in read_pairs(tmp_path / "module.py", "pkg.module", "train")}


SHAPES = '''
    import sys

    @decorated("Tells what it does.")
    class Circle(Shape):
        """A round shape with a centre. And more."""

        radius: float
        """How far out."""

        def area(self):
            """Compute the area of the circle, π r²."""
            r = self.radius  # π
            return 3 * r * r

        @property
        def label(self): "Name the circle in words."; return "circle"

        class Style:
            """How the circle is drawn on screen."""
            width = 1
            colour = "red"

    if sys.platform == "win32":
        def grow(shape, by):
            """Grow a shape by a factor."""
            shape.scale(by)
            return shape
    else:
        def grow(shape, by):
            """Grow a shape by a factor, elsewhere."""
            def local():
                """Never a passage of its own."""
                x = 1
                return x
            return local
'''


def test_code_is_dedented_and_has_no_docstring(tmp_path):
    pairs = pairs_of(tmp_path, SHAPES)
    area = pairs["pkg.module:Circle.area"]
    assert area.query == "Compute the area of the circle, π r²."
    assert area.code == "def area(self):\n    r = self.radius  # π\n    return 3 * r * r"
    other = pairs["pkg.module:grow#2"].code
    assert (
        other == "def grow(shape, by):\n    def local():\n        x = 1\n        return x\n    return local"
    )


def test_class_is_reduced_to_its_outline(tmp_path):
    code = pairs_of(tmp_path, SHAPES)["pkg.module:Circle"].code
    assert [line for line in code.split("\n") if line] == [
        "class Circle(Shape):",
        "    radius: float",
        "    def area(self):",
        "    @property",
        "    def label(self):",
        "    class Style:",
        "        width = 1",
        '        colour = "red"',
    ]


def test_ids_are_qualified_names(tmp_path):
    names = {doc_id.removeprefix("pkg.module:") for doc_id in pairs_of(tmp_path, SHAPES)}
    assert names == {"Circle", "Circle.area", "Circle.Style", "grow", "grow#2"}  # label: one line


def test_docstring_on_the_line_of_a_definition_is_removed(tmp_path):
    write(tmp_path / "module.py", 'class C:\n    "Keep the rest of it."; x = 1\n    y = 2\n')
    [pair] = read_pairs(tmp_path / "module.py", "m", "train")
    assert pair.code == "class C:\n    ; x = 1\n    y = 2"


@pytest.mark.parametrize(
    "code",
    [
        'def f(x):\n    """Two words"""\n    y = x\n    return y\n',
        'def f(x):\n    """Long enough a docstring."""\n    return x\n',
        'def f(x):\n    """Long enough a docstring."""\n\n\n\n    return x\n',
        'def latest(x):\n    """Long enough a docstring."""\n    y = x\n    return y\n',
        'def __len__(x):\n    """Long enough a docstring."""\n    y = x\n    return y\n',
        'def f(x):\n    """f(x, y) returns the docstring."""\n    y = x\n    return y\n',
        'def f(x):\n    """Long \\ud800 a docstring."""\n    y = x\n    return y\n',
        "def f(x):\n    y = x\n    z = y\n    return z\n",
        'def f(x)\n    """Long enough a docstring."""\n    y = x\n    return y\n',
    ],
)
def test_filters_of_codesearchnet_apply(tmp_path, code):
    assert pairs_of(tmp_path, code) == {}


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return it.", "Return it."),
        ("\n    Return\n    it, folded\n\n    More.", "Return it, folded"),
        ("Return it. Then stop.", "Return it."),
        ("Use a list, e.g. this one. Or not.", "Use a list, e.g. this one."),
        ("See :func:`~os.path.join`, ``x``, `docs <https://x>`_.", "See os.path.join, x, docs."),
        (
            "A **bold** *slanted* |word|, *args, **kwargs, a**b**c.",
            "A bold slanted word, *args, **kwargs, a**b**c.",
        ),
        ("Return it.\n:param x: what", "Return it."),
        ("Return it\nArgs:\n  x: what", "Return it"),
        ("Return it\n>>> f()", "Return it"),
        ("", ""),
    ],
)
def test_query_is_the_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_copy_in_the_test_split_is_kept():
    code = "def {}(x):\n    y = x{}\n    return {}(y)"
    kept = remove_duplicates(
        [
            DocumentedCode("a:f", "One of them.", code.format("f", "", "Llama"), "train"),
            DocumentedCode("b:g", "Another of them.", code.format("g", "  # why", "Mistral"), "test"),
            DocumentedCode("c:f", "Third of them.", code.format("f", "", "Qwen"), "dev"),
            DocumentedCode("d:f", "Something else.", code.format("f", " + 1", "Llama"), "train"),
        ]
    )
    assert [p.doc_id for p in kept] == ["b:g", "d:f"]


def test_query_of_different_code_is_removed_with_all_its_code():
    kept = remove_duplicates(
        [
            DocumentedCode("a:f", "Return the name.", "code 1", "train"),
            DocumentedCode("b:f", "return the name.", "code 2", "test"),
            DocumentedCode("c:f", "Return the size.", "code 3", "test"),
        ]
    )
    assert [p.doc_id for p in kept] == ["c:f"]


def test_copies_with_the_same_query_leave_one():
    kept = remove_duplicates(
        [
            DocumentedCode("a:f", "Return it.", "same", "train"),
            DocumentedCode("b:f", "Return it.", "same", "train"),
        ]
    )
    assert [p.doc_id for p in kept] == ["a:f"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package of 40 modules that fails when it is imported, with tests and data folders."""
    root = tmp_path / "path" / "made_up"
    write(root / "__init__.py", "raise RuntimeError('imported')")
    body = 'def f{0}(x):\n    """Do thing number {0} of many."""\n    y = x + {0}\n    return y\n'
    for i in range(40):
        write(root / "sub" / f"_m{i}.py", body.format(i))
    for elsewhere in ("tests/test_a.py", "sub/conftest_test.py", "not-a-package/x.py", "testing/__init__.py"):
        write(root / elsewhere, body.format(99))
    write(root / "latest.py", body.format(41))
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    return PythonDocsSource(kind="python_docs", packages=["made_up"])


def test_modules_are_found_without_import_and_without_tests(package):
    names = [module for module, _ in find_modules("made_up")]
    assert sorted(names) == sorted(["made_up", "made_up.latest", *(f"made_up.sub._m{i}" for i in range(40))])
    assert "made_up" not in sys.modules


def test_module_belongs_to_one_split_with_queries_and_passages(package, tmp_path):
    collect(package, tmp_path / "out")
    queries = read_queries(tmp_path / "out")
    assert len(queries) == 41
    for split in SPLITS:
        docs = {passage.doc_id: passage for passage in read_corpus(tmp_path / "out", split)}
        qrels = read_qrels(tmp_path / "out", split, queries)
        assert qrels == {f"q:{doc_id}": {doc_id: 1} for doc_id in docs}
        assert all(split_of(doc_id.split(":")[0], 0.2, 0.3) == split for doc_id in docs)
    assert queries["q:made_up.sub._m7:f7"] == "Do thing number 7 of many."


def test_same_code_makes_the_same_bytes(package, tmp_path):
    for out in ("a", "b"):
        collect(package, tmp_path / out)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
        assert sha256(tmp_path / "a" / name) == sha256(tmp_path / "b" / name)


@pytest.mark.parametrize(
    ("packages", "says"),
    [
        (["no_such_package"], "'no_such_package'.*not installed"),
        (["xml.etree"], r"'xml\.etree'.*top-level"),
        (["itertools"], "'itertools'.*no Python code"),
        (["made_up", "this"], "no query"),
    ],
)
def test_unusable_package_is_reported(package, tmp_path, packages, says):
    source = PythonDocsSource(kind="python_docs", packages=packages, test_share=0.0001)
    with pytest.raises(BadInput, match=says):
        collect(source, tmp_path / "out")


def test_shares_must_leave_train_modules():
    with pytest.raises(ValueError, match="below 1"):
        PythonDocsSource(kind="python_docs", dev_share=0.5, test_share=0.5)


def test_packages_of_the_standard_library_make_a_collection(tmp_path):
    collect(PythonDocsSource(kind="python_docs", packages=["json", "email", "asyncio"]), tmp_path / "out")
    passages = {passage.doc_id: passage.text for passage in read_corpus(tmp_path / "out")}
    assert len(passages) > 100
    decode = "json.decoder:JSONDecoder.raw_decode"
    assert passages[decode].startswith("def raw_decode(self, s, idx=0):\n    try:")
    assert read_queries(tmp_path / "out")[f"q:{decode}"].startswith("Decode a JSON document from s (a str")
    functions = [text for text in passages.values() if text.startswith(("def ", "async def "))]
    for _, node in (found for text in functions for found in find_definitions(ast.parse(text))):
        assert ast.get_docstring(node) is None


def test_standard_library_has_no_tests_and_no_site_packages():
    files = dict(find_modules("stdlib"))
    assert {"json.decoder", "unittest.case", "doctest", "_pydecimal", "email"} <= files.keys()
    assert not [module for module in files if {"test", "idle_test", "numpy"} & set(module.split("."))]
    assert not [path for path in files.values() if "site-packages" in path.parts]
