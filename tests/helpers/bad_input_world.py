"""A folder of small valid files, damages to them, and commands that run in it."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import tiny
import torch
from safetensors.torch import load_file, save_file

from lwr.cli.app import main as lwr_main
from lwr.common.hashing import sha256
from lwr.common.json_lines import write_json, write_jsonl
from lwr.config.data.bi_encoder import BiEncoderSection
from lwr.config.evaluation import FusionConfig, ScoringConfig
from lwr.config.model import BaseModelConfig, PromptTemplate
from lwr.evaluation.fuse import fuse
from lwr.formats import parquet
from lwr.formats.beir import Passage, write_collection
from lwr.formats.trec import write_run
from lwr.model.reranker import LayerwiseReranker
from lwr.scoring.embed import embed
from lwr.scoring.score import score

Damage = Callable[[], object]
"""A change of the files in the working directory."""
SPLITS = {"train": range(4), "dev": range(4, 6), "test": range(6, 8)}
ARM = {"dataset": "d", "trained_on": "d", "base_model": "m", "start_layer": 3, "variant": "v"}
TRAINING = (
    "{steps: 2, groups_per_batch: 2, group_size: 3, query_max_len: 8, passage_max_len: 40, log_steps: 1}"
)
SHORT = {"query": "{query}", "passage": "{passage}", "after": ["?"]}
GRID = """\
datasets:
  docs: {source: {kind: beir, path: data}}
base_models:
  tiny: {model: ./base}
start_layers: [2]
train: {steps: 4}
measures: [nDCG@10]
"""

COLLECT = ["collect", "--dataset", "{source: {kind: beir, path: data}}", "--out", "out"]
RETRIEVE = [*"retrieve --collection data --split test --out out.trec --settings".split(), "{depth: 5}"]
ADOPT_RUN = [*RETRIEVE[:-1], "{runs: {test: test.trec}}"]
EMBED = [*"embed --collection data --out out --settings".split(), "{kind: dense, model: ./base}"]
DENSE = [*RETRIEVE[:-1], "{kind: dense, model: ./base}", "--embeddings", "embeddings"]
MINE = [*"mine --collection data --run train.trec --out out.jsonl --settings".split(), "{negatives: 2}"]
GROUPS = ["groups", "--source", "{kind: flag_embedding, path: groups.jsonl}", "--out", "out.jsonl"]
BASE = ["base", "--base", "{model: ./base}", "--out", "out.json"]
TRAIN = [*"train --start-layer 3 --groups groups.jsonl --collection data --dev-run dev.trec".split()]
TRAIN += ["--seed", "1", "--out", "out", "--settings", TRAINING]
TRAIN += ["--base", json.dumps({"model": "./base", "template": SHORT})]
SCORE = [*"score --model model --collection data --split test --run test.trec --out out.parquet".split()]
SCORE += ["--settings", "{}"]
TEACH = [*"teach --collection data --run train.trec --out out.trec --teacher".split()]
TEACH += ["{kind: layerwise, model: model, layer: 4}"]
GATHER = ["gather", "shard1.parquet", "shard2.parquet", "--out", "out.parquet"]
CASCADE = [*"cascade --dev dev.parquet --test test.parquet --model model --collection data".split()]
CASCADE += ["--settings", "{}", "--arm", json.dumps(ARM), "--out", "out.json"]
FUSE = [*"fuse --dev dev.parquet --collection data --settings {} --out out.json".split()]
FUSE += ["--arm", json.dumps(ARM)]
PRECISION = [*"precision --model model --dev dev.parquet --collection data --out out.json".split()]
PRECISION += ["--settings", "{precision: int8}", "--arm", json.dumps(ARM)]
EVALUATE = [*"evaluate --scores test.parquet --collection data --split test --cascade cascade.json".split()]
EVALUATE += ["--cell", json.dumps(ARM | {"seed": 1}), "--runs", "out", "--out", "out.parquet"]
EVALUATE += ["--measures", "nDCG@10"]
CALIBRATE = [*"calibrate --dev dev.parquet --test test.parquet --collection data --out out.json".split()]
CALIBRATE += ["--cell", json.dumps(ARM | {"seed": 1})]
COST = [*"cost --model model --scores test.parquet --cascade fused.json --collection data".split()]
COST += [*"--scoring {} --settings".split(), "{queries: 1}", "--out", "out.json"]
CHECK = ["check", "grid.yaml"]
EXPORT = [*"export --model model --layer 3 --out out".split()]
RERANK = [*"rerank --model model --query decode --passages passages.txt --layer 3 --out out.trec".split()]
SERVE = "serve --model model --port 0".split()


def build(folder: Path) -> Path:
    """Write every file that the commands above read, and `precious` files where they write."""
    queries = {f"q{i}": f"decode the number {i * i}" for i in range(8)}
    corpus = [Passage(f"d{i}", "", f"def f{i}(self, x): return decode(x, {i * i})") for i in range(12)]
    write_collection(
        folder / "data",
        corpus,
        queries,
        {split: {f"q{i}": {f"d{i}": 1} for i in places} for split, places in SPLITS.items()},
    )
    for split, places in SPLITS.items():
        run = {f"q{i}": [(f"d{(i + j) % 12}", 9.0 - j) for j in range(5)] for i in places}
        write_run(folder / f"{split}.trec", run, "made-up")
    texts = {passage.doc_id: passage.text for passage in corpus}
    groups = [
        {"query": queries[f"q{i}"], "pos": [texts[f"d{i}"]], "neg": [texts[f"d{i + j}"] for j in (1, 2, 3)]}
        for i in range(4)
    ]
    write_jsonl(folder / "groups.jsonl", groups)
    tiny.save("llama", folder / "base")
    torch.manual_seed(0)
    reranker = LayerwiseReranker(
        tiny.backbone("llama"),
        tiny.tokenizer(encoder=False),
        start_layer=3,
        template=PromptTemplate(**SHORT),
        query_max_len=8,
        passage_max_len=40,
        base=BaseModelConfig(model="./base"),
    )
    reranker.save_pretrained(folder / "model")
    with contextlib.chdir(folder):
        embed(Path("data"), BiEncoderSection(model="./base"), Path("embeddings"))
        for split in ("dev", "test"):
            of_split = (Path("model"), Path("data"), split, Path(f"{split}.trec"), ScoringConfig())
            score(*of_split, Path(f"{split}.parquet"))
        for k in (1, 2):
            score(*of_split, Path(f"shard{k}.parquet"), f"{k}/2")
        fuse([Path("dev.parquet")], Path("data"), FusionConfig(), "nDCG@10", ARM, Path("fusion.json"))
    write_json(folder / "cascade.json", ARM | {"chosen": "3:2 4", "deepest": "4", "schedules": []})
    schedules = [{"schedule": "0:3 4", "test flops": 0.6}]
    chosen = {"chosen": "0:3 4", "deepest": "4", "fused": True, "schedules": schedules}
    inputs = {"fusion": sha256(folder / "fusion.json")}
    write_json(folder / "fused.json", ARM | chosen | {"inputs": inputs})
    (folder / "grid.yaml").write_text(GRID)
    (folder / "passages.txt").write_text("decode a number\nencode a number\n")
    for name in ("out.trec", "out.jsonl", "out.json", "out.parquet"):
        (folder / name).write_text("precious\n")
    (folder / "out").mkdir()
    (folder / "out/precious").touch()
    return folder


@dataclass(frozen=True)
class Case:
    """A fault, a command that reads it, and key words of its message; without any, the input is accepted."""

    what: str
    command: list[str]
    damage: Damage
    key_words: tuple[str, ...] = ()
    code: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The result of a command: exit status, stderr, and the files that it changed."""

    code: int
    stderr: str
    changed: list[str]


def run(case: Case) -> Outcome:
    """Damage the files in the working directory, and run the command there."""
    case.damage()
    before, stderr = _files(), io.StringIO()
    with (
        patch.dict(os.environ, case.environment),
        patch.object(sys, "argv", ["lwr", *case.command]),
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        os.environ.pop("LWR_DEBUG", None)
        try:
            lwr_main()
        except SystemExit as ended:
            code = ended.code or 0
    after = _files()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return Outcome(code, stderr.getvalue(), changed)


def _files() -> dict[str, str]:
    return {str(p): sha256(p) if p.is_file() else "" for p in Path().rglob("*")}


def row(case: Case, outcome: Outcome) -> str:
    """Return the row of a case in the table of docs/reliability.md."""
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("lwr: ")]
    message = outcome.stderr[outcome.stderr.index(lines[0]) :] if lines else outcome.stderr
    message = message.replace(f"{Path.cwd()}/", "").replace(str(Path.cwd()), ".")
    message = message.partition(" Error ")[2] or message if outcome.code == 2 else message
    message = " ".join(re.sub(r"[│╭╮╰╯─]+", " ", message).split())
    seen = "accepted" if outcome.code == 0 else "`" + message.replace("`", "'").replace("|", "¦") + "`"
    return f"| {case.what} | `lwr {case.command[0]}` | {seen} |"


# --- damages --------------------------------------------------------------------------------------------


def no_damage() -> None:
    """Leave all files as they are: the command itself is wrong."""


def write(name: str, content: str | bytes) -> Damage:
    """Replace a file."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda: Path(name).write_bytes(data)


def set_line(name: str, number: int, text: str | bytes) -> Damage:
    """Replace a line, counted from 1."""

    def damage() -> None:
        lines = Path(name).read_bytes().split(b"\n")
        lines[number - 1] = text if isinstance(text, bytes) else text.encode()
        Path(name).write_bytes(b"\n".join(lines))

    return damage


def encode(name: str, encoding: str) -> Damage:
    """Write a file in another encoding, with a letter that differs in it."""

    def damage() -> None:
        text = Path(name).read_text(encoding="utf-8").replace("decode", "décode")
        Path(name).write_bytes(text.encode(encoding))

    return damage


def replace(name: str, old: str, new: str) -> Damage:
    """Replace a text in a file."""

    def damage() -> None:
        text = Path(name).read_bytes().decode()
        assert old in text, (name, old)
        Path(name).write_bytes(text.replace(old, new).encode())

    return damage


def append(name: str, text: str) -> Damage:
    """Add a text at the end of a file."""
    return lambda: Path(name).write_bytes(Path(name).read_bytes() + text.encode())


def truncate(name: str, share: float = 0.5) -> Damage:
    """Keep the first share of a file."""

    def damage() -> None:
        data = Path(name).read_bytes()
        Path(name).write_bytes(data[: int(len(data) * share)])

    return damage


def remove(name: str) -> Damage:
    """Delete a file."""
    return lambda: Path(name).unlink()


def set_keys(name: str, **values: object) -> Damage:
    """Set keys of a JSON file; None deletes a key."""

    def damage() -> None:
        content = json.loads(Path(name).read_text()) | values
        kept = {key: value for key, value in content.items() if value is not None}
        Path(name).write_text(json.dumps(kept))

    return damage


def edit_table(name: str, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    """Edit a Parquet file, and keep what it records of its inputs."""
    return lambda: parquet.write(Path(name), edit(pd.read_parquet(name)), parquet.read_inputs(Path(name)))


def edit_weights(name: str, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    """Edit the tensors of a safetensors file."""

    def damage() -> None:
        tensors = {key: tensor.clone() for key, tensor in load_file(name).items()}
        save_file(edit(tensors), name, {"format": "pt"})

    return damage


def pickle_weights(folder: str) -> Damage:
    """Replace the weights of a checkpoint by a pickle."""

    def damage() -> None:
        torch.save(load_file(f"{folder}/model.safetensors"), f"{folder}/pytorch_model.bin")
        Path(folder, "model.safetensors").unlink()

    return damage


def compress(name: str, share: float = 1.0) -> Damage:
    """Write a gzip archive, or its first share, beside a file."""

    def damage() -> None:
        data = gzip.compress(Path(name).read_bytes(), mtime=0)
        Path(f"{name}.gz").write_bytes(data[: int(len(data) * share)])

    return damage


def combine(*damages: Damage) -> Damage:
    """Apply several damages in order."""

    def damage() -> None:
        for each in damages:
            each()

    return damage
