"""The digest of a step changes with the meaning of the code it imports, and with nothing else."""

from __future__ import annotations

import textwrap

import pytest

from lwr.common import code_digest as module
from lwr.common.code_digest import code_digest, import_closure

PACKAGE = {
    "__init__.py": '"""The package."""\n',
    "steps/__init__.py": '"""All steps."""\n',
    "steps/train.py": """
        '''Train a model.'''
        from lwr.helpers import add

        def train(numbers):
            '''Return the sum.'''
            from lwr.lazy import scale  # imported when it is called

            return scale(add(numbers))
        """,
    "helpers.py": """
        import lwr.config

        FACTOR = 2
        '''Multiplies the sum.'''

        def add(numbers):
            return sum(numbers) * FACTOR
        """,
    "config.py": """
        class Settings:
            '''Keys of a config.'''
            steps: int = Field(4, ge=1, description="how many steps")
        """,
    "lazy.py": "def scale(number):\n    return number * 3\n",
    "unused.py": "import lwr.helpers\n",
}


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """Write a changed copy of PACKAGE and return the digest of its step `steps/train`."""
    number = 0

    def digest(changes: dict[str, tuple[str, str]] | None = None) -> str:
        nonlocal number
        number += 1
        root = tmp_path / str(number) / "lwr"
        for name, code in PACKAGE.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            old, new = (changes or {}).get(name, ("", ""))
            assert old in code
            file.write_text(textwrap.dedent(code.replace(old, new) if old else code), encoding="utf-8")
        monkeypatch.setattr(module, "PACKAGE_ROOT", root)
        return code_digest("steps/train")

    return digest


def test_digest_is_the_same_for_the_same_code(digest):
    assert digest() == digest()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("steps/train.py", "Train a model.", "Train one model."),
        ("steps/train.py", "Return the sum.", "Return their sum."),
        ("steps/train.py", "  # imported when it is called", ""),
        ("helpers.py", "Multiplies the sum.", "A factor."),
        ("config.py", "Keys of a config.", "All keys."),
        ("config.py", "how many steps", "number of steps"),
        ("__init__.py", "The package.", "A package."),
    ],
    ids=["module", "function", "comment", "attribute", "class", "description", "package"],
)
def test_rewording_prose_does_not_change_the_digest(digest, file, old, new):
    assert digest({file: (old, new)}) == digest()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("steps/train.py", "scale(add(numbers))", "add(numbers)"),
        ("helpers.py", "FACTOR = 2", "FACTOR = 3"),
        ("config.py", "Field(4", "Field(5"),
        ("config.py", "ge=1", "ge=2"),
        ("lazy.py", "number * 3", "number * 4"),
        ("__init__.py", '"""The package."""', "import os"),
    ],
    ids=["step", "constant", "default", "limit", "import inside a function", "package"],
)
def test_editing_code_changes_the_digest(digest, file, old, new):
    assert digest({file: (old, new)}) != digest()


def test_edit_in_a_file_that_is_not_imported_does_not_change_the_digest(digest):
    assert digest({"unused.py": ("import lwr.helpers", "x = 1")}) == digest()


def test_closure_follows_all_imports_of_the_package(digest):
    digest()
    root = module.PACKAGE_ROOT
    closure = {str(file.relative_to(root)) for file in import_closure(root / "steps/train.py")}
    assert closure == {"steps/train.py", "helpers.py", "config.py", "lazy.py", "__init__.py"}
