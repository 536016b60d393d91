"""`lwr verify` accepts an unchanged results tree, and finds and names each kind of damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import results_tree
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lwr.cli.app import app
from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.common.json_lines import read_json, write_json, write_jsonl
from lwr.formats import parquet
from lwr.verify.tables import LayerMeans, layer_faults
from lwr.verify.verify import verify

ARM = "cells/docs/tiny/start3/default"
SEED = f"{ARM}/seed1"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return results_tree.build(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def results(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "results")


def flip_bit(path: Path, at: float) -> None:
    """Flip a bit of the byte at a share of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def test_unchanged_tree_has_no_faults(made):
    verdict = verify(made)
    assert verdict.faults == verdict.notes == []
    written = [path for path in made.rglob("*") if path.is_file()]
    assert verdict.files == len(written)
    shown = CliRunner().invoke(app, ["verify", str(made)])
    assert shown.exit_code == 0
    assert f"{len(written)} files" in shown.output


@pytest.mark.parametrize(("written", "faults"), [("0.000000", 0), ("", 1), ("0.100000", 1)])
def test_a_mean_of_zero_is_a_number(tmp_path, written, faults):
    """A column of the table without an empty cell is read as numbers, of which 0 is false."""
    arm = {
        "dataset": "docs",
        "trained_on": "docs",
        "base_model": "tiny",
        "start_layer": 3,
        "variant": "default",
    }
    means = LayerMeans()
    measured = {**arm, "seed": 1, "exit": "layer_3", "measure": "RR@10", "value": 0.0}
    means.add(pd.DataFrame([measured]), "test")
    (tmp_path / "layers.csv").write_text(
        ",".join([*arm, "exit", "RR@10"]) + f"\ndocs,docs,tiny,3,default,layer_3,{written}\n"
    )
    assert len(list(layer_faults(tmp_path / "layers.csv", means))) == faults


def edit_cell(path: Path, column: str, value: object) -> None:
    table = pd.read_parquet(path)
    table.loc[1, column] = value
    parquet.write(path, table, parquet.read_inputs(path))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def increase(path: Path, column: str) -> None:
    table = pd.read_csv(path)
    table.loc[1, column] += 1
    table.to_csv(path, index=False, float_format="%.6f")


def change_heads(path: Path) -> None:
    save_file({name: head + 1e-3 for name, head in load_file(path).items()}, path)


def keep_weights_of_layer_4(path: Path) -> None:
    record = read_json(path, {})
    for weights in (record, *record["out_of_fold"]):
        for name in ("with_first_stage", "without_first_stage"):
            del weights[name]["layer_3"]
    write_json(path, record)


DAMAGE = {
    "a byte of the weights": (f"{SEED}/model/model.safetensors", lambda p: flip_bit(p, 0.7), ["not what training wrote"]),
    "weights cut short": (f"{SEED}/model/model.safetensors", truncate, ["damaged"]),
    "other heads": (f"{SEED}/model/heads.safetensors", change_heads, ["not what training wrote"]),
    "heads deleted": (f"{SEED}/model/heads.safetensors", Path.unlink, ["missing"]),
    "a file that training did not write": (f"{SEED}/model/extra.bin", Path.touch, ["not a file that training wrote"]),
    "lwr.json edited": (f"{SEED}/model/lwr.json", lambda p: replace(p, '"depth": 4', '"depth":  4'), ["not what training wrote"]),
    "provenance deleted": (f"{SEED}/model/provenance.json", Path.unlink, ["no such file"]),
    "training log cut": (f"{SEED}/model/training.jsonl", truncate, ["not what training wrote", "not JSON"]),
    "model deleted": (f"{SEED}/model", shutil.rmtree, ["missing; run the workflow again"]),
    "scores cut short": (f"{SEED}/scores/docs/test.parquet", truncate, ["damaged"]),
    "a byte of the scores": (f"{SEED}/scores/docs/dev.parquet", lambda p: flip_bit(p, 0.2), ["damaged"]),
    "a score edited": (f"{SEED}/scores/docs/test.parquet", lambda p: edit_cell(p, "layer_4", 9.0), ["of another", "ranks otherwise"]),
    "a candidate edited": (f"{SEED}/scores/docs/test.parquet", lambda p: edit_cell(p, "doc_id", "d19"), ["other candidates"]),
    "a score that is not a number": (f"{SEED}/scores/docs/test.parquet", lambda p: edit_cell(p, "layer_3", None), ["not a finite number"]),
    "scores written by something else": (f"{SEED}/scores/docs/test.parquet", lambda p: pd.read_parquet(p).to_parquet(p), ["does not record which run"]),
    "scores deleted": (f"{SEED}/scores/docs/dev.parquet", Path.unlink, ["missing"]),
    "a value edited": ("tables/layers.csv", lambda p: edit_cell(p.parent.parent / SEED / "measures/docs/test.parquet", "value", 0.123), ["by its measures"]),
    "a query lost from the measures": (f"{SEED}/measures/docs/test.parquet", lambda p: parquet.write(p, pd.read_parquet(p).iloc[1:], parquet.read_inputs(p)), ["3 queries, but 4 are judged"]),
    "measures deleted": (f"{SEED}/measures/docs/test.parquet", Path.unlink, ["missing"]),
    "a run edited": (f"{SEED}/runs/docs/test/layer_4.trec", lambda p: replace(p, " d", " e"), ["ranks otherwise"]),
    "a run cut": (f"{SEED}/runs/docs/test/layer_3.trec", lambda p: p.write_text(p.read_text()[:-8]), ["columns"]),
    "runs deleted": (f"{SEED}/runs/docs/test", shutil.rmtree, ["missing"]),
    "cascade edited": (f"{ARM}/cascade/docs.json", lambda p: replace(p, '"chosen": "', '"chosen": "1:'), ["1:"]),
    "cascade deleted": (f"{ARM}/cascade/docs.json", Path.unlink, ["missing"]),
    "fusion.json cut short": (f"{ARM}/fusion/docs.json", truncate, ["fusion/docs.json: not JSON", "made of another"]),
    "a weight of fused scores edited": (f"{ARM}/fusion/docs.json", lambda p: replace(p, '"without_first_stage": {\n    "layer_3": {\n      "layer_3": ', '"without_first_stage": {\n    "layer_3": {\n      "layer_3": 1'), ["made of another"]),
    "fused scores: weights of other layers": (f"{ARM}/fusion/docs.json", keep_weights_of_layer_4, ["has weights of layer_4, but", "made of another"]),
    "fused scores: weights without folds": (f"{ARM}/fusion/docs.json", lambda p: write_json(p, read_json(p, {}) | {"out_of_fold": []}), ["out_of_fold"]),
    "fused scores: weights of other scores": (f"{ARM}/fusion/docs.json", lambda p: replace(p, '"inputs": {\n    "dev": [\n      "', '"inputs": {\n    "dev": [\n      "0'), ["other scores of dev"]),
    "fusion.json deleted": (f"{ARM}/fusion/docs.json", Path.unlink, ["fusion/docs.json: missing", "cascade/docs.json: was made of"]),
    "cost cut": ("cost/docs.json", truncate, ["not JSON"]),
    "cost of another arm": ("cost/docs.json", lambda p: replace(p, '"base_model": "', '"base_model": "other-'), ["lacks", "other-tiny"]),
    "qrels of test changed": ("collections/docs/qrels/test.tsv", lambda p: replace(p, "\td10\t1", "\td11\t1"), ["qrels/test.tsv than is there now"]),
    "qrels of dev changed": ("collections/docs/qrels/dev.tsv", lambda p: replace(p, "\td6\t1", "\td6\t2"), ["another dev collection"]),
    "qrels of train changed": ("collections/docs/qrels/train.tsv", lambda p: replace(p, "\td0\t1", "\td9\t1"), ["judged otherwise"]),
    "a passage changed": ("collections/docs/corpus.jsonl", lambda p: replace(p, "def f3", "def g3"), ["of another"]),
    "a passage lost": ("collections/docs/corpus.jsonl", lambda p: p.write_text("".join(p.read_text().splitlines(True)[1:])), ["no passage 'd0'"]),
    "queries deleted": ("collections/docs/queries.jsonl", Path.unlink, ["no such file"]),
    "first stage changed": ("collections/docs/runs/test.trec", lambda p: replace(p, "dense", "other"), ["runs/test.trec than is there now"]),
    "a bit of the embeddings": ("collections/docs/embeddings/passages/00000.npy", lambda p: flip_bit(p, 0.7), ["00000.npy: is not what"]),
    "embeddings of the queries deleted": ("collections/docs/embeddings/queries.npy", Path.unlink, ["queries.npy: missing"]),
    "embeddings of another corpus": ("collections/docs/embeddings/embeddings.json", lambda p: replace(p, '"corpus": "', '"corpus": "0'), ["made of another corpus"]),
    "embeddings without a description": ("collections/docs/embeddings/embeddings.json", Path.unlink, ["embeddings.json"]),
    "teacher's run changed": ("collections/docs/teachers/cosine.trec", lambda p: replace(p, " cosine", " other"), ["cosine.trec than is there now"]),
    "teacher's run of an unknown passage": ("collections/docs/teachers/cosine.trec", lambda p: replace(p, " d", " e"), ["no passage 'e"]),
    "teacher's run of another split": ("collections/docs/teachers/cosine.trec", lambda p: replace(p, "q0 ", "q6 "), ["'q6' is not judged for train"]),
    "groups changed": ("collections/docs/groups.jsonl", lambda p: p.write_text("".join(p.read_text().splitlines(True)[1:])), ["groups.jsonl than is there now"]),
    "base model described otherwise": ("base_models/tiny.json", lambda p: replace(p, '"fingerprint": "', '"fingerprint": "0'), ["trained on another tiny"]),
    "table edited": ("tables/layers.csv", lambda p: increase(p, "nDCG@10"), ["by its measures"]),
    "table edited, of dev": ("tables/layers.csv", lambda p: increase(p, "dev nDCG@10"), ["by its measures"]),
    "table of costs edited": ("tables/cost.csv", lambda p: increase(p, "parameters"), ["other rows"]),
    "table of cascades edited": ("tables/cascades.csv", lambda p: increase(p, "test"), ["other rows"]),
    "row of the table lost": ("tables/layers.csv", lambda p: p.write_text("".join(p.read_text().splitlines(True)[:-1])), ["lacks docs"]),
    "table deleted": ("tables/cost.csv", Path.unlink, ["missing"]),
    "table emptied": ("tables/layers.md", lambda p: p.write_text(""), ["empty"]),
    "recommendation deleted": ("tables/recommendation.md", Path.unlink, ["missing"]),
    "figure cut": ("figures/quality.svg", lambda p: p.write_bytes(b"<svg>"), ["cut short"]),
    "figure deleted": ("figures/quality.png", Path.unlink, ["missing"]),
    "report cut": ("report.html", lambda p: p.write_text("<html>"), ["cut short"]),
    "a seed deleted": (ARM, lambda p: shutil.rmtree(p / "seed2"), ["other scores", "by its measures"]),
    "all cells deleted": ("cells", shutil.rmtree, ["whose measures are missing"]),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_and_named(results, case):
    name, damage, key_words = DAMAGE[case]
    damage(results / name)
    faults = verify(results).faults
    assert all(any(text in fault for fault in faults) for text in key_words), faults
    assert any(Path(name).name in fault for fault in faults), faults
    assert len(set(faults)) == len(faults)
    assert all("\n" not in fault and fault.startswith(str(results)) for fault in faults), faults


def test_command_exits_with_1_and_prints_a_line_per_fault(results):
    (results / "report.html").unlink()
    flip_bit(results / SEED / "model/model.safetensors", 0.7)
    shown = CliRunner().invoke(app, ["verify", str(results)])
    assert shown.exit_code == 1
    faults = shown.stderr.splitlines()
    assert any(f"{results}/report.html: missing" in fault for fault in faults)
    assert faults[-1].startswith(f"{len(faults) - 1} faults in ")


@pytest.mark.parametrize("chosen", ["4", "3:2 4"])
def test_other_weights_are_found_whatever_was_chosen(results, chosen):
    cascade, fusion = results / ARM / "cascade/docs.json", results / ARM / "fusion/docs.json"
    write_json(cascade, read_json(cascade, {}) | {"chosen": chosen, "fused": False})
    write_json(fusion, read_json(fusion, {}) | {"penalty": 1.0})
    assert any(f"{cascade}: was made of another {fusion}" in fault for fault in verify(results).faults)


def test_weights_that_are_not_used_are_a_note(results):
    """As after a rerun with `fusion: off`."""
    cascade, fusion = results / ARM / "cascade/docs.json", results / ARM / "fusion/docs.json"
    choice = read_json(cascade, {})
    del choice["inputs"]["fusion"]
    write_json(cascade, choice)
    for measures in results.glob(f"{ARM}/seed*/measures/docs/*.parquet"):
        table = pd.read_parquet(measures)
        inputs = parquet.read_inputs(measures) | {"cascade": sha256(cascade)}
        del inputs["fusion"]
        parquet.write(measures, table[~table["exit"].str.endswith("_fused")], inputs)
    verdict = verify(results)
    assert verdict.notes == [f"{fusion}: weights that the cascade was not chosen with, may be removed"]
    # cost and tables are those of fused exits still
    assert {Path(fault.split(": ")[0]).name for fault in verdict.faults} == {"docs.json", "layers.csv"}


def test_cost_of_one_arm_as_older_versions_wrote_it_is_a_note(results):
    old = results / ARM / "cost/docs.json"
    write_json(old, {"exits": []})
    verdict = verify(results)
    assert verdict.faults == []
    assert verdict.notes == [
        f"{old}: the cost of one arm, as older versions wrote it; no step reads it, may be removed"
    ]


def test_leftovers_of_a_kill_are_notes_not_faults(results):
    shards = results / "collections/docs/teachers/cosine.shards"
    shards.mkdir()
    (shards / "1.trec").touch()
    drafts = [
        f"{ARM}/cascade/.draft-0a1b2c3d-docs.json",
        f"{ARM}/.draft-0a1b2c3d-seed3",
        f"{SEED}/scores/.draft-1",
    ]
    drafts += ["figures/.draft-0a1b2c3d-quality.svg", "base_models/.draft-0a1b2c3d-tiny.json"]
    drafts += ["collections/docs/runs/.draft-0a1b2c3d-test.trec", "collections/.draft-0a1b2c3d-docs"]
    for name in drafts:
        (results / name).touch()
    (results / "collections/docs/embeddings.unfinished-0a1b2c3d").mkdir()
    (results / SEED / "model.checkpoints-0123456789ab/checkpoint-2").mkdir(parents=True)
    verdict = verify(results)
    assert verdict.faults == []
    *of_drafts, of_checkpoints, of_embeddings, of_shard = verdict.notes
    assert "embeddings that were made since" in of_embeddings
    assert of_shard.startswith(f"{shards}/1.trec: a shard of scores that was not gathered yet")
    assert len(of_drafts) == len(drafts)
    assert all(".draft-" in note and "harmless" in note for note in of_drafts)
    assert "checkpoints" in of_checkpoints
    assert "training that has finished" in of_checkpoints
    shutil.rmtree(results / SEED / "model")
    shutil.rmtree(results / "collections/docs/embeddings")
    notes = verify(results).notes
    assert any("training that has not finished" in note for note in notes)
    assert any("embeddings that are not finished" in note for note in notes)


def test_snakemake_timestamps_are_not_faults(results):
    for folder in (f"{SEED}/model", f"{SEED}/runs/docs/test", "collections/docs/qrels"):
        (results / folder / ".snakemake_timestamp").touch()
    assert verify(results).faults == []


def test_adopted_groups_need_no_collection(results):
    write_jsonl(results / "collections/theirs/groups.jsonl", [{"query": "q", "pos": ["p"], "neg": ["n"]}])
    assert verify(results).faults == []


def test_folder_without_results_is_refused(tmp_path):
    with pytest.raises(BadInput, match="holds no collections, cells or tables"):
        verify(tmp_path)


def test_model_copied_from_another_cell_is_found(results):
    model = results / SEED / "model"
    provenance = json.loads((model / "provenance.json").read_text())
    provenance["cell"] = {
        "trained_on": "docs",
        "base_model": "tiny",
        "start_layer": 3,
        "variant": "default",
        "seed": 2,
    }
    write_json(model / "provenance.json", provenance)
    (fault,) = verify(results).faults
    assert f"{model}: was trained for " in fault
    assert "seed2" in fault
