"""Rankings by calibrated probabilities, thresholds, and calibrations in folders of rerankers."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tiny

from lwr.common.exits import FIRST_STAGE
from lwr.common.json_lines import write_json
from lwr.formats.calibration import FILE_NAME, Logistic, calibration_record
from lwr.formats.fusion import Fusion
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import find_calibration

QUERY = "load the object"
TEXTS = [f"def decode{i}(s): return s" + " and more" * (i % 4) for i in range(9)]
FIRST_STAGE_SCORES = [3.5, 9.25, 1.0, 4.5, 4.5, 7.0, 2.0, 8.0, 0.5]
LINES = {FIRST_STAGE: Logistic(0.25, -1.0)}
LINES |= {f"layer_{k}": Logistic(float(k), -0.5) for k in (2, 3, 4)}
LINES |= {f"layer_{k}_fused": Logistic(0.5 * k, 0.5) for k in (2, 3, 4)}


@cache
def reranker() -> LayerwiseReranker:
    model = tiny.build_reranker("llama").eval()
    weights = {k: {FIRST_STAGE: 0.5, f"layer_{k}": 1.0} for k in (2, 3, 4)}
    model.fusion = Fusion(weights, {k: {f"layer_{k}": 1.0} for k in (2, 3, 4)})
    model.calibration = LINES
    return model


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"layer": 2},
        {"cascade": "2:5 3:3 4"},
        {"cascade": "0:6 2:4 4", "first_stage": FIRST_STAGE_SCORES},
        {"layer": 3, "fused": True, "first_stage": FIRST_STAGE_SCORES},
        {"cascade": "0:6 2:4 4", "fused": True, "first_stage": FIRST_STAGE_SCORES},
        {"budget_ms": 1e6},
    ],
    ids=str,
)
def test_probability_is_that_of_the_last_exit_and_a_threshold_drops_those_below(how):
    raw = reranker().rank(QUERY, TEXTS, **how)
    ranked = reranker().rank(QUERY, TEXTS, probabilities=True, **how)
    assert [entry["corpus_id"] for entry in ranked] == [entry["corpus_id"] for entry in raw]
    expected = []
    for entry in raw:
        layer = entry.get("layer", how.get("layer", 4))
        fused = "_fused" if how.get("fused") else ""
        line = LINES[f"layer_{layer}{fused}" if layer else FIRST_STAGE]
        expected.append(1 / (1 + np.exp(-(line.slope * entry["score"] + line.intercept))))
    assert [entry["score"] for entry in ranked] == pytest.approx(expected)
    threshold = float(np.median(expected))
    kept = [entry for entry, p in zip(raw, expected, strict=True) if p >= threshold]
    assert 0 < len(kept) < len(raw)
    margin = 1e-9  # the median is the probability of one of the documents
    assert reranker().rank(QUERY, TEXTS, threshold=threshold - margin, **how) == kept
    assert reranker().rank(QUERY, TEXTS, threshold=threshold - margin, top_k=2, **how) == kept[:2]
    assert reranker().rank(QUERY, TEXTS, threshold=0, **how) == raw
    assert reranker().rank(QUERY, TEXTS, threshold=1, **how) == []


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"threshold": 1.5}, "threshold is 1.5; give a probability from 0 to 1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"probabilities": True, "normalize": True}, "normalize and probabilities: give one"),
        (
            {"probabilities": True, "compression": "2/2"},
            "no calibration of layer_4_compressed_2_by_2, only of",
        ),
        ({"threshold": 0.5, "fused": True}, "give first_stage, or do not fuse"),
    ],
    ids=str,
)
def test_wrong_wishes_are_refused(how, expected):
    with pytest.raises(ValueError, match=expected):
        reranker().rank(QUERY, TEXTS, **how)


@pytest.mark.parametrize("how", [{"probabilities": True}, {"threshold": 0.5}], ids=str)
def test_reranker_without_calibration_says_how_to_get_one(how):
    model = tiny.build_reranker("llama").eval()
    with pytest.raises(ValueError, match=r"no calibration.*read_calibration.*`lwr calibrate` wrote"):
        model.rank(QUERY, TEXTS, **how)


def test_calibration_is_stored_beside_the_model(tmp_path):
    reranker().save_pretrained(tmp_path)
    loaded = LayerwiseReranker.from_pretrained(tmp_path)
    assert loaded.calibration == find_calibration(str(tmp_path)) == LINES
    how = {"layer": 3, "probabilities": True}
    assert loaded.rank(QUERY, TEXTS, **how) == reranker().rank(QUERY, TEXTS, **how)
    loaded.calibration = None
    loaded.save_pretrained(tmp_path)
    assert not (tmp_path / FILE_NAME).exists()
    assert LayerwiseReranker.from_pretrained(tmp_path).calibration is None


def test_file_of_the_step_is_read_beside_a_model(tmp_path):
    reranker().save_pretrained(tmp_path)
    step = {"dataset": "d", "inputs": {}} | calibration_record({"layer_4": Logistic(2.0, 1.0)})
    write_json(tmp_path / FILE_NAME, step)
    assert LayerwiseReranker.from_pretrained(tmp_path).calibration == {"layer_4": Logistic(2.0, 1.0)}
