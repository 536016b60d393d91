"""Tests of `lwr train`: equal results whatever the batches and processes, files, the step that is kept."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

import lwr.training.train
import lwr.training.trainer
from lwr.common.errors import BadInput
from lwr.common.exits import Cell
from lwr.common.json_lines import read_json, write_jsonl
from lwr.common.progress import Progress
from lwr.config.evaluation import ScoringConfig
from lwr.config.model import BaseModelConfig
from lwr.config.training import TrainingConfig
from lwr.evaluation.measures import measures_per_query, rankings
from lwr.formats.beir import Passage, write_collection
from lwr.formats.trec import read_run, write_run
from lwr.model.batching import pad
from lwr.model.linear.lora import merge_lora
from lwr.model.reranker import LayerwiseReranker
from lwr.scoring.score import score
from lwr.training.train import build_reranker, train
from lwr.training.trainer import LayerwiseTrainer

GROUPS, DEV = 32, 6
SETTINGS = {"steps": 3, "groups_per_batch": 8, "group_size": 3, "query_max_len": 16, "passage_max_len": 48}
SETTINGS |= {"lr": 1e-3, "head_lr": 1e-2, "log_steps": 1}
TEMPLATE = {"query": "{query}", "passage": "{passage}", "after": ["?"]}


def passage(i: int) -> str:
    return f"def f{i}(self, {'x, ' * (i % 4)}y): return decode(y, {i * i})"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Return a collection with groups.jsonl and dev.trec, and base models without dropout."""
    folder = tmp_path_factory.mktemp("data")
    queries = {f"q{i}": f"decode the number {i * i}" for i in range(GROUPS + DEV)}
    corpus = [Passage(f"d{i}", "", passage(i)) for i in range(GROUPS + DEV)]
    dev = range(GROUPS, GROUPS + DEV)
    write_collection(folder, corpus, queries, {"dev": {f"q{i}": {f"d{i}": 1} for i in dev}})
    candidates = {f"q{i}": [(f"d{j}", float(-j)) for j in dev] for i in dev}
    write_run(folder / "dev.trec", candidates, "tiny")
    groups = (
        {
            "query": queries[f"q{i}"],
            "pos": [passage(i)],
            "neg": [passage((i + j) % GROUPS) for j in range(1, 5)],
        }
        for i in range(GROUPS)
    )
    write_jsonl(folder / "groups.jsonl", groups)
    for architecture in ("llama", "bert", "qwen3"):
        config = tiny.save(architecture, folder / architecture) / "config.json"
        without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config.write_text(json.dumps(json.loads(config.read_text()) | without_dropout))
    return folder


def base(data: Path, architecture: str) -> BaseModelConfig:
    return BaseModelConfig(model=str(data / architecture), template=TEMPLATE)


def run(
    data: Path,
    out: Path,
    architecture: str = "llama",
    seed: int = 1,
    cell: Cell | None = None,
    groups: Path | None = None,
    measure: str = "nDCG@10",
    **settings,
) -> Path:
    train(
        base(data, architecture),
        2,
        TrainingConfig.model_validate(SETTINGS | settings),
        groups or data / "groups.jsonl",
        data,
        data / "dev.trec",
        seed,
        out,
        cell=cell,
        measure=measure,
    )
    return out


def command(data: Path, out: Path, architecture: str, seed: int = 1, **settings) -> list[str]:
    """Return the command line of the same training."""
    return [
        *("train", "--base", json.dumps({"model": str(data / architecture), "template": TEMPLATE})),
        *("--start-layer", "2", "--settings", json.dumps(SETTINGS | settings)),
        *(
            "--groups",
            str(data / "groups.jsonl"),
            "--collection",
            str(data),
            "--dev-run",
            str(data / "dev.trec"),
        ),
        *("--seed", str(seed), "--out", str(out)),
    ]


def lwr_command(*step: str) -> None:
    """Run `lwr STEP` in a separate process with one thread."""
    subprocess.run(
        [sys.executable, "-m", "lwr.cli", *step], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def weights(model: Path) -> dict[str, Tensor]:
    tensors = {}
    for file in sorted(model.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def logs(model: Path, key: str = "loss") -> list[dict[str, float]]:
    """Return the lines of training.jsonl that have `key`."""
    lines = [json.loads(line) for line in (model / "training.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


def trajectory(model: Path) -> list[float]:
    """Return every loss of every log, in order: the total, then the terms by exit."""
    names = [f"{term}_layer_{k}" for term in ("contrastive", "distillation") for k in (2, 3, 4)]
    return [line[name] for line in logs(model) for name in ("loss", *names)]


def distance(a: Path, b: Path) -> float:
    """Return the largest difference between two models' weights."""
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture
def sgd(monkeypatch):
    """Train with SGD, because AdamW divides by the gradient and so amplifies its last bits."""

    def optimizer(reranker: LayerwiseReranker, settings: TrainingConfig) -> torch.optim.SGD:
        return torch.optim.SGD([p for p in reranker.parameters() if p.requires_grad], lr=settings.lr)

    monkeypatch.setattr(lwr.training.trainer, "make_optimizer", optimizer)


# --- equal results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "settings",
    [{"groups_per_batch": 1, "accumulation": 8}, {"recompute": "nothing"}, {"recompute": "blocks"}],
    ids=["accumulation", "recompute nothing", "recompute blocks"],
)
def test_saving_memory_does_not_change_the_training(data, tmp_path, architecture, settings, sgd):
    plain = run(data, tmp_path / "plain", architecture, lr=0.1)
    saving = run(data, tmp_path / "saving", architecture, lr=0.1, **settings)
    assert distance(plain, saving) < 1e-5
    assert trajectory(saving) == pytest.approx(trajectory(plain), abs=1e-5)
    assert distance(plain, run(data, tmp_path / "elsewhere", architecture, lr=0.2)) > 1e-3


def test_same_seed_gives_equal_weights(data, tmp_path):
    first, again, other = (run(data, tmp_path / str(i), seed=seed) for i, seed in enumerate([1, 1, 2]))
    assert distance(first, again) == 0
    assert distance(first, other) > 1e-3


@pytest.fixture(scope="module")
def plain_step(data) -> Path:
    return run(data, data / "plain_step", steps=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"distillation": {"teacher": "next"}},
        {"distillation": {"temperature": 2.0}},
        {"exit_weights": {2: 0.1}},
        {"heads": "shared"},
        {"head_init": "yes_token"},
    ],
    ids=str,
)
def test_setting_changes_the_loss(data, tmp_path, plain_step, settings):
    assert trajectory(run(data, tmp_path / "other", steps=1, **settings)) != trajectory(plain_step)


def test_batches_of_a_step_are_compressed_alike(data, tmp_path, sgd):
    settings = {"lr": 0.1, "compression": {"layers": [2, 3], "ratios": [2, 4]}}
    whole = run(data, tmp_path / "whole", **settings)
    accumulated = run(data, tmp_path / "accumulated", groups_per_batch=1, accumulation=8, **settings)
    assert distance(whole, accumulated) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, {"layers": [2, 3], "ratios": [1, 2, 4]}], ids=str)
def test_two_processes_equal_one(data, tmp_path, compression):
    settings = {"steps": 6, "log_steps": 2, "eval_steps": 3, "compression": compression}
    one = run(data, tmp_path / "one", groups_per_batch=8, **settings)
    step = command(data, tmp_path / "two", "llama", groups_per_batch=4, **settings)
    lwr_command("launch", "--gpus", "0", "--processes", "2", "--", *step)
    assert trajectory(tmp_path / "two") == pytest.approx(trajectory(one), abs=1e-5)
    ndcg = [[line["eval_mean"] for line in logs(model, "eval_mean")] for model in (one, tmp_path / "two")]
    assert ndcg[1] == pytest.approx(ndcg[0])


@pytest.mark.slow
def test_sharded_model_that_was_stopped_equals_one_process(data, tmp_path):
    settings = {"steps": 16, "max_grad_norm": 0.1, "recompute": "blocks", "eval_steps": 8}
    settings |= {"compression": {"layers": [2, 3], "ratios": [1, 2, 4]}}
    one = run(data, tmp_path / "one", groups_per_batch=8, **settings)
    sharded = {"groups_per_batch": 2, "accumulation": 2, "parallel": "fsdp", "checkpoint_steps": 2} | settings
    step = ["launch", "--gpus", "0", "--processes", "2", "--"]
    step += command(data, tmp_path / "two", "llama", **sharded)
    process = subprocess.Popen(
        [sys.executable, "-m", "lwr.cli", *step], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    while not list(tmp_path.glob("two.checkpoints-*/checkpoint-*/whole")):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    process.wait()
    assert not (tmp_path / "two").exists(), "it ended before it was stopped"
    (checkpoint,) = {marker.parent for marker in tmp_path.glob("two.checkpoints-*/checkpoint-2/whole")}
    assert len(list(checkpoint.glob("pytorch_model_fsdp_0/*.distcp"))) == 2, "not sharded"

    lwr_command(*step)
    assert distance(one, tmp_path / "two") < 1e-5
    for key in ("grad_norm", "eval_mean"):
        logged = [[line[key] for line in logs(model, key)] for model in (one, tmp_path / "two")]
        assert logged[1] == pytest.approx(logged[0], rel=1e-4)
    assert min(line["grad_norm"] for line in logs(one)) > 0.1, "no gradient was clipped"
    assert LayerwiseReranker.from_pretrained(tmp_path / "two").exits == [2, 3, 4]


@pytest.mark.parametrize(("precision", "tolerance"), [("int8", 5e-3), ("nf4", 2e-2)])
def test_adapter_on_a_quantised_base(data, tmp_path, precision, tolerance):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    settings = {"steps": 12, "lr": 1e-2, "eval_steps": 4, "keep": "best"}
    lora = {"rank": 4, "alpha": 8}
    quantised = {"lora": lora | {"base_precision": precision}}
    reranker = build_reranker(base(data, "llama"), 2, TrainingConfig.model_validate(SETTINGS | quantised)).to(
        "cpu"
    )
    layers = {"int8": bitsandbytes.nn.Linear8bitLt, "nf4": bitsandbytes.nn.Linear4bit}
    frozen = [m.weight for m in reranker.stack.blocks.modules() if isinstance(m, layers[precision])]
    assert len(frozen) == 4 * 7
    assert {(weight.element_size(), weight.requires_grad) for weight in frozen} == {(1, False)}

    plain = run(data, tmp_path / "plain", lora=lora, steps=1)
    model = run(data, tmp_path / "model", **settings, **quantised)
    losses = [line["loss"] for line in logs(model)]
    assert losses[0] == pytest.approx(trajectory(plain)[0], rel=tolerance)
    assert losses[0] != trajectory(plain)[0], "not quantised"
    assert losses[-1] < losses[0]
    assert sorted(path.name for path in model.glob("*.safetensors")) == [
        "adapter_model.safetensors",
        "heads.safetensors",
    ]
    assert "quantization_config" not in (model / "config.json").read_text()
    loaded = LayerwiseReranker.from_pretrained(model)
    assert {type(m) for m in loaded.stack.blocks.modules()}.isdisjoint(layers.values())
    assert math.isfinite(loaded.score([("decode the number 4", passage(2))])[0])


def test_quantised_base_without_bitsandbytes(data, tmp_path, monkeypatch):
    monkeypatch.setattr("lwr.model.linear.frozen.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"lora.base_precision: nf4 .*bitsandbytes.*pip install"):
        run(data, tmp_path / "model", lora={"base_precision": "nf4"})


# --- logs and files ------------------------------------------------------------------------------------


def test_losses_of_every_exit_are_logged(data, tmp_path):
    lines = logs(run(data, tmp_path / "model", steps=4, log_steps=2))
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        terms = {name: value for name, value in line.items() if "_layer_" in name}
        assert sorted(terms) == [
            f"{term}_layer_{k}" for term in ("contrastive", "distillation") for k in (2, 3, 4)
        ]
        assert line["distillation_layer_4"] == 0
        assert sum(terms.values()) == pytest.approx(line["loss"], rel=1e-3)
    first = [lines[0][f"contrastive_layer_{k}"] for k in (2, 3, 4)]
    assert first == pytest.approx([math.log(3)] * 3, rel=0.2), "random heads start at chance"


def test_compression_is_drawn_learnt_and_logged(data, tmp_path):
    settings = {"steps": 4, "compression": {"layers": [2, 3], "ratios": [2, 4]}}
    model = run(data, tmp_path / "model", **settings)
    lines = logs(model)
    for line in lines:
        terms = sum(value for name, value in line.items() if "_layer_" in name)
        assert line["compression"] > 0
        assert terms + line["compression"] == pytest.approx(line["loss"], rel=1e-3)
    again = run(data, tmp_path / "again", **settings)
    assert (model / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    plain = run(data, tmp_path / "plain", steps=4)
    assert all("compression" not in line for line in logs(plain))
    assert (model / "model.safetensors").read_bytes() != (plain / "model.safetensors").read_bytes()


def test_ratio_1_trains_as_without_compression(data, tmp_path):
    one = run(data, tmp_path / "one", compression={"layers": [2], "ratios": [1]})
    plain = run(data, tmp_path / "plain")
    assert (one / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_compression_after_the_last_block_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"no block reads the tokens after layer 4; give layers in 1\.\.3"):
        run(data, tmp_path / "model", compression={"layers": [2, 4], "ratios": [2]})


def test_losses_of_teacher_scores_are_learnt_and_logged_under_their_name(data, tmp_path):
    """Scores that fall with the number of a negative are learnt by every exit."""
    lines = [json.loads(line) for line in (data / "groups.jsonl").read_text().splitlines()]
    scored = [line | {"pos_scores": [2.0], "neg_scores": [1.0, 0.5, 0.0, -0.5]} for line in lines]
    write_jsonl(tmp_path / "scored.jsonl", scored)
    for loss in ("mse", "margin_mse", "ranknet", "listnet"):
        settings = {"steps": 8, "group_size": 5, "loss": loss, "distillation": {"teacher": "none"}}
        first, *_, last = logs(run(data, tmp_path / loss, groups=tmp_path / "scored.jsonl", **settings))
        for layer in (2, 3, 4):
            assert last[f"{loss}_layer_{layer}"] < first[f"{loss}_layer_{layer}"]
            assert first[f"distillation_layer_{layer}"] == 0
        assert not any(name.startswith("contrastive") for name in first)


@pytest.mark.parametrize("loss", ["mse", "margin_mse"])
def test_loss_of_teacher_scores_is_refused_where_groups_have_none(data, tmp_path, loss):
    with pytest.raises(BadInput, match=rf"groups\.jsonl:1: no teacher scores.*{loss}.*teacher_run"):
        run(data, tmp_path / "model", loss=loss)


def test_cell_is_recorded_in_provenance(data, tmp_path):
    cell = {"trained_on": "docs", "base_model": "tiny", "start_layer": 2, "variant": "default", "seed": 1}
    step = command(data, tmp_path / "in_grid", "llama", steps=1)
    lwr_command(*step, "--cell", json.dumps(cell))
    by_hand = run(data, tmp_path / "by_hand", steps=1)
    recorded = [read_json(model / "provenance.json", {}) for model in (tmp_path / "in_grid", by_hand)]
    assert [provenance["cell"] for provenance in recorded] == [cell, None]
    assert [provenance["threads"] for provenance in recorded] == [1, 1]


def test_cell_of_another_seed_is_refused(data, tmp_path):
    cell = Cell("docs", "tiny", start_layer=2, variant="default", seed=2)
    with pytest.raises(ValueError, match="seed 1"):
        run(data, tmp_path / "model", cell=cell)


def test_learning_rate_warms_up_and_decays(data, tmp_path):
    lines = logs(run(data, tmp_path / "model", steps=8, warmup=0.25), "learning_rate")
    rates = [line["learning_rate"] / SETTINGS["lr"] for line in lines]
    assert rates == pytest.approx([0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_epochs_set_the_number_of_steps(data, tmp_path):
    lines = logs(run(data, tmp_path / "model", steps=None, epochs=2, groups_per_batch=10))
    assert [line["step"] for line in lines] == list(range(1, 9))


def test_progress_is_shown_inside_a_dev_evaluation(data, tmp_path, monkeypatch):
    shown = []
    recorder = property(lambda self: "", lambda self, text: shown.append(text))
    monkeypatch.setattr(Progress, "current", recorder, raising=False)
    model = run(data, tmp_path / "model", steps=2, eval_steps=2)
    pairs = sum(map(len, read_run(data / "dev.trec").values()))
    assert f"dev evaluation: {pairs}/{pairs} pairs" in shown
    assert shown[-1] == ""
    assert len(logs(model, "eval_mean")) == 1


@pytest.mark.parametrize("measure", ["nDCG@10", "RR@2"])
def test_dev_evaluation_equals_scoring_and_measuring(data, tmp_path, capsys, measure):
    model = run(data, tmp_path / "model", steps=4, eval_steps=2, measure=measure)
    assert f"dev {measure} by layer" in capsys.readouterr().err
    assert json.loads((model / "provenance.json").read_text(encoding="utf-8"))["dev_measure"] == measure
    evaluations = logs(model, "eval_mean")
    assert [line["step"] for line in evaluations] == [2, 4]
    score(model, data, "dev", data / "dev.trec", ScoringConfig(), tmp_path / "dev.parquet")
    table = pd.read_parquet(tmp_path / "dev.parquet")
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(GROUPS, GROUPS + DEV)}
    for k in (2, 3, 4):
        measured = measures_per_query(qrels, rankings(table, f"layer_{k}"), [measure])["value"].mean()
        assert evaluations[-1][f"eval_layer_{k}"] == pytest.approx(measured)
    assert evaluations[-1]["eval_mean"] == pytest.approx(
        sum(evaluations[-1][f"eval_layer_{k}"] for k in (2, 3, 4)) / 3
    )


@pytest.mark.parametrize(
    ("keep_by", "lora"), [("mean", None), ("deepest", None), (3, None), ("mean", {"rank": 4})], ids=str
)
def test_keep_best_keeps_the_best_evaluated_step(data, tmp_path, keep_by, lora):
    # at this learning rate quality falls quickly, so the best step is an early one
    settings = {"steps": 8, "eval_steps": 1, "lr": 0.1, "warmup": 0.0, "keep": "best"}
    settings |= {"keep_by": keep_by, "lora": lora}
    model = run(data, tmp_path / "model", seed=2, **settings)
    evaluations = logs(model, "eval_mean")
    key = {"mean": "eval_mean", "deepest": "eval_layer_4", 3: "eval_layer_3"}[keep_by]
    best = max(line[key] for line in evaluations)
    assert evaluations[-1][key] < best, "the last step must not be the best for this test to mean anything"
    score(model, data, "dev", data / "dev.trec", ScoringConfig(), tmp_path / "dev.parquet")
    table = pd.read_parquet(tmp_path / "dev.parquet")
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(GROUPS, GROUPS + DEV)}
    by_exit = [
        measures_per_query(qrels, rankings(table, f"layer_{k}"), ["nDCG@10"])["value"].mean()
        for k in (2, 3, 4)
    ]
    kept = {"mean": sum(by_exit) / 3, "deepest": by_exit[2], 3: by_exit[1]}[keep_by]
    assert kept == pytest.approx(best)


def test_keep_by_a_layer_without_head_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"keep_by is 1.*2\.\.4"):
        run(data, tmp_path / "model", eval_steps=1, keep="best", keep_by=1)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_saved_adapter_scores_as_in_training(data, tmp_path, architecture, monkeypatch):
    trained = []
    save = LayerwiseReranker.save_pretrained
    monkeypatch.setattr(
        LayerwiseReranker, "save_pretrained", lambda self, folder: (trained.append(self), save(self, folder))
    )
    model = run(data, tmp_path / "model", architecture, lora={"rank": 4, "alpha": 8}, steps=6)
    assert (model / "adapter_model.safetensors").is_file()
    assert not (model / "model.safetensors").exists()

    @torch.no_grad()
    def scores(reranker: LayerwiseReranker) -> Tensor:
        rows = reranker.prompt.rows([("decode the number 4", passage(i)) for i in range(4)])
        return torch.stack(reranker.eval().encode(pad(rows, reranker.tokenizer)))

    loaded = scores(LayerwiseReranker.from_pretrained(model, device="cpu"))
    assert torch.equal(loaded, scores(trained[0]))
    without_adapter = build_reranker(base(data, architecture), 2, TrainingConfig.model_validate(SETTINGS))
    without_adapter.heads = trained[0].heads
    assert (loaded - scores(without_adapter)).abs().max() > 1e-3, "the adapter must have moved"


@pytest.mark.slow
def test_bfloat16_trains(data, tmp_path):
    plain = run(data, tmp_path / "plain", steps=12)
    halved = run(data, tmp_path / "halved", steps=12, precision="bfloat16", eval_steps=6)
    assert {tensor.dtype for tensor in weights(halved).values()} == {torch.float32}
    losses, expected = ([line["loss"] for line in logs(model)] for model in (halved, plain))
    assert losses != expected
    assert losses == pytest.approx(expected, rel=0.1)
    assert losses[-1] < losses[0] - 0.1


# --- the optimiser and what is refused -----------------------------------------------------------------


def test_heads_have_their_learning_rate_and_only_matrices_decay(data):
    settings = TrainingConfig.model_validate(SETTINGS | {"weight_decay": 0.1})
    reranker = build_reranker(base(data, "bert"), 2, settings)
    groups = lwr.training.trainer.make_optimizer(reranker, settings).param_groups
    group_of = {p: group for group in groups for p in group["params"]}
    assert group_of.keys() == {p for p in reranker.parameters() if p.requires_grad}
    for p in reranker.backbone.parameters():
        if p.requires_grad:
            assert (group_of[p]["lr"], group_of[p]["weight_decay"]) == (1e-3, 0.1 if p.ndim == 2 else 0.0)
    for head in reranker.heads:
        assert (group_of[head]["lr"], group_of[head]["weight_decay"]) == (1e-2, 0.0)


def test_loss_or_gradient_that_is_not_finite_names_its_groups(data, tmp_path):
    with pytest.raises(
        FloatingPointError,
        match=r"(loss|gradient) of .* not finite after step [1-3].*groups\.jsonl:\d+",
    ):
        run(data, tmp_path / "model", lr=1e30, warmup=0.0, steps=5)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_own_norms_are_trained_apart(data, tmp_path, lora):
    heads = load_file(run(data, tmp_path / "model", exit_norm="own", lora=lora) / "heads.safetensors")
    norms = [heads[f"layer_{k}.norm.weight"] for k in (2, 3, 4)]
    begin = load_file(data / "llama/model.safetensors")["model.norm.weight"]
    assert not any(torch.equal(norm, begin) for norm in norms)
    assert not torch.equal(norms[0], norms[1])
    if lora is None:
        after = load_file(tmp_path / "model/model.safetensors")["norm.weight"]
        assert torch.equal(after, begin), "no head reads it, so it is not trained"


def test_own_norms_without_a_final_norm_are_refused(data):
    with pytest.raises(ValueError, match="exit_norm: shared"):
        build_reranker(base(data, "bert"), 2, TrainingConfig.model_validate(SETTINGS | {"exit_norm": "own"}))


@pytest.mark.parametrize("head_init", ["yes_token", "checkpoint"])
def test_head_init_that_the_base_model_lacks_is_refused(data, head_init):
    with pytest.raises(ValueError, match=rf"head_init is '{head_init}'.*bert"):
        build_reranker(
            base(data, "bert"), 2, TrainingConfig.model_validate(SETTINGS | {"head_init": head_init})
        )


# --- going on from a trained reranker --------------------------------------------------------------------


def continued(model: Path, **settings) -> LayerwiseReranker:
    """Return the untrained reranker of a training that goes on from `model`."""
    again = BaseModelConfig(model=str(model), template=TEMPLATE)
    settings = SETTINGS | {"head_init": "checkpoint"} | settings
    return build_reranker(again, 2, TrainingConfig.model_validate(settings)).eval()


def scores_of_pairs(reranker: LayerwiseReranker) -> Tensor:
    rows = reranker.prompt.rows([("decode the number 4", passage(2)), ("decode", passage(3))])
    with torch.no_grad():
        return reranker(pad(rows, reranker.prompt.tokenizer, reranker.num_embeddings))


@pytest.mark.parametrize("heads", ["per_exit", "shared"])
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_training_goes_on_from_the_weights_and_heads_of_a_reranker(data, tmp_path, lora, heads):
    model = run(data, tmp_path / "model", lora=lora, heads=heads)
    if lora is not None:
        trained = LayerwiseReranker.from_pretrained(model, device="cpu")
        merge_lora(trained)
        model = tmp_path / "merged"
        trained.save_pretrained(model)
    expected = scores_of_pairs(LayerwiseReranker.from_pretrained(model, device="cpu"))
    assert torch.equal(scores_of_pairs(continued(model)), expected)
    assert torch.equal(scores_of_pairs(continued(model, lora={"rank": 2})), expected)
    assert not torch.equal(scores_of_pairs(continued(model, head_init="random")), expected)


def test_going_on_from_an_adapter_is_refused_with_the_fix(data, tmp_path):
    with pytest.raises(BadInput, match=r"adapter_config\.json.*merge_lora"):
        continued(run(data, tmp_path / "model", lora={"rank": 4}))


def test_going_on_with_another_prompt_is_refused(data, tmp_path):
    model = run(data, tmp_path / "model")
    another = BaseModelConfig(model=str(model), template=TEMPLATE | {"after": ["!"]})
    settings = TrainingConfig.model_validate(SETTINGS | {"head_init": "checkpoint"})
    with pytest.raises(ValueError, match=r"trained with template .*give it the same"):
        build_reranker(another, 2, settings)


def test_going_on_with_another_pooling_is_refused(data, tmp_path):
    model = run(data, tmp_path / "model", "bert")
    another = BaseModelConfig(model=str(model), pooling="first")
    settings = TrainingConfig.model_validate(SETTINGS | {"head_init": "checkpoint"})
    with pytest.raises(ValueError, match="trained with pooling mean, but base_models has first"):
        build_reranker(another, 2, settings)


def test_going_on_from_own_norms_is_refused(data, tmp_path):
    with pytest.raises(BadInput, match="exit_norm: shared"):
        continued(run(data, tmp_path / "model", exit_norm="own"))


def test_going_on_at_shallower_layers_is_refused(data, tmp_path):
    model = run(data, tmp_path / "model")
    with pytest.raises(ValueError, match=r"no head for layers \[1\]"):
        build_reranker(
            BaseModelConfig(model=str(model), template=TEMPLATE),
            1,
            TrainingConfig.model_validate(SETTINGS | {"head_init": "checkpoint"}),
        )


# --- learning ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", pytest.param("qwen3", marks=pytest.mark.nightly)])
def test_every_exit_overfits_a_few_groups(data, tmp_path, architecture):
    step = command(data, tmp_path / "model", architecture, steps=150, log_steps=10, lr=3e-3)
    lwr_command(*step)
    last = logs(tmp_path / "model")[-1]
    assert max(last[f"contrastive_layer_{k}"] for k in (2, 3, 4)) < 0.1


@pytest.fixture
def float16_on_a_cpu(monkeypatch):
    """Return a function that sets the initial factor of losses in the trainings that follow.

    accelerate gives CPUs no scaler, so the trainer gets that of PyTorch, which is the same on GPUs.
    """

    def set_scale(scale: float) -> None:
        class WithScaler(LayerwiseTrainer):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
                self.accelerator.native_amp = True

        monkeypatch.setattr(lwr.training.train, "_check_device", lambda _: None)
        monkeypatch.setattr(lwr.training.train, "LayerwiseTrainer", WithScaler)

    return set_scale


def losses(model: Path) -> list[float]:
    return [line["loss"] for line in logs(model)]


def test_float16_learns_as_float32(data, tmp_path, float16_on_a_cpu, capsys):
    expected = losses(run(data, tmp_path / "float32"))
    float16_on_a_cpu(2.0**10)
    half = run(data, tmp_path / "float16", precision="float16")
    assert losses(half) == pytest.approx(expected, abs=0.02)
    assert losses(half) != expected
    assert [line["skipped_steps"] for line in logs(half)] == [0] * 3
    assert "changed nothing" not in capsys.readouterr().err
    assert all(tensor.dtype == torch.float32 for tensor in load_file(half / "model.safetensors").values())


def test_steps_that_overflow_are_skipped_and_counted(data, tmp_path, float16_on_a_cpu, capsys):
    float16_on_a_cpu(2.0**24)
    model = run(data, tmp_path / "model", steps=8, precision="float16")
    skipped = [line["skipped_steps"] for line in logs(model)]
    assert skipped[0] == 1
    assert skipped[-1] == 0
    assert f"{sum(skipped)} of 8 steps changed nothing" in capsys.readouterr().err
    assert all(math.isfinite(line.get("grad_norm", 0)) for line in logs(model))


def test_skipped_steps_after_the_last_log_are_counted(data, tmp_path, float16_on_a_cpu, capsys):
    float16_on_a_cpu(2.0**24)
    model = run(data, tmp_path / "model", steps=3, log_steps=2, precision="float16")
    assert sum(line["skipped_steps"] for line in logs(model)) == 2
    assert "3 of 3 steps changed nothing" in capsys.readouterr().err


def test_overflow_without_a_factor_is_an_error(data, tmp_path, float16_on_a_cpu):
    float16_on_a_cpu(1.0)
    with pytest.raises(FloatingPointError, match=r"gradient of .* not finite after step 0"):
        run(data, tmp_path / "model", precision="float16", exit_weights={2: 1e7, 3: 1e7, 4: 1e7})


def test_float16_without_a_gpu_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="float16 needs a GPU"):
        run(data, tmp_path / "model", precision="float16")
    assert not (tmp_path / "model").exists()
