import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share
from lwr.formats.fusion import Fusion, fold_of, fuse_scores, fusion_record, normalize_first_stage, read_fusion

FUSION = Fusion(
    {2: {"first_stage": 0.5, "layer_2": 1.5}, 3: {"first_stage": 0.25, "layer_2": -0.5, "layer_3": 2.0}},
    {2: {"layer_2": 1.0}, 3: {"layer_2": -0.25, "layer_3": 1.0}},
)


def test_fused_scores_are_the_weighted_sum_of_features():
    features = {"first_stage": np.array([1.0, -1.0]), "layer_2": np.array([2.0, 4.0]), "layer_3": np.zeros(2)}
    fused = fuse_scores(FUSION.weights(3, has_first_stage=True), features)
    np.testing.assert_array_equal(fused, [0.25 - 1.0, -0.25 - 2.0])


def test_numpy_and_torch_compute_the_same_bits():
    generator = np.random.default_rng(0)
    features = {name: generator.normal(size=1000) for name in ("first_stage", "layer_2", "layer_3")}
    weights = {"first_stage": 0.1234, "layer_2": -0.7, "layer_3": 1.9}
    by_torch = fuse_scores(weights, {name: torch.from_numpy(values) for name, values in features.items()})
    np.testing.assert_array_equal(fuse_scores(weights, features), by_torch.numpy())


def test_weights_of_one_exit_alone_reproduce_its_scores_to_the_byte():
    scores = np.random.default_rng(0).normal(size=50).astype(np.float32)
    features = {"first_stage": np.arange(50.0), "layer_2": scores.astype(np.float64)}
    fused = fuse_scores({"first_stage": 0.0, "layer_2": 1.0}, features)
    assert fused.astype(np.float32).tobytes() == scores.tobytes()


def test_normalized_first_stage_does_not_depend_on_the_order():
    scores = np.random.default_rng(0).gamma(2.0, size=31)
    order = np.random.default_rng(1).permutation(31)
    normalized = normalize_first_stage(scores)
    assert normalized.mean() == pytest.approx(0, abs=1e-12)
    assert normalized.std() == pytest.approx(1)
    np.testing.assert_array_equal(normalized[order], normalize_first_stage(scores[order]))


@given(st.lists(st.floats(-1e38, 1e38), min_size=2, max_size=20).filter(lambda scores: len(set(scores)) > 1))
@example([0.0, 1e-160])
@example([5e-324, 0.0, -1e38])
@example([0.0, 5e-324])
def test_normalized_first_stage_has_mean_0_and_deviation_1_and_keeps_the_order(scores):
    normalized = normalize_first_stage(scores)
    assert normalized.mean() == pytest.approx(0, abs=1e-9)
    assert normalized.std() == pytest.approx(1)
    assert (np.diff(normalized[np.argsort(scores)]) >= 0).all()


@pytest.mark.parametrize("scores", [[], [3.0], [2.0, 2.0, 2.0]])
def test_a_first_stage_that_tells_nothing_apart_becomes_zero(scores):
    np.testing.assert_array_equal(normalize_first_stage(scores), np.zeros(len(scores)))


def test_a_written_file_reads_back(tmp_path):
    (tmp_path / "fusion.json").write_text(json.dumps(fusion_record(FUSION)))
    assert read_fusion(tmp_path / "fusion.json") == FUSION


def test_weights_of_compressed_passages_read_back(tmp_path):
    names = ["layer_2", "layer_3_compressed_2_by_4"]
    behind = Fusion({3: {"first_stage": 0.5} | dict.fromkeys(names, 2.0)}, {3: dict.fromkeys(names, 1.0)})
    fusion = dataclasses.replace(FUSION, compressed={((2, 4),): behind})
    record = fusion_record(fusion)
    assert list(record["without_first_stage"]) == ["layer_2", "layer_3", "layer_3_compressed_2_by_4"]
    (tmp_path / "fusion.json").write_text(json.dumps(record))
    read = read_fusion(tmp_path / "fusion.json")
    assert read == fusion
    assert read.exits == ["layer_2", "layer_3", "layer_3_compressed_2_by_4"]
    assert read.weights(3, False, ((2, 4),)) == {"layer_2": 1.0, "layer_3_compressed_2_by_4": 1.0}
    assert read.weights(2, True, ((2, 4),)) == FUSION.weights(2, True)


@pytest.mark.parametrize(
    "damage",
    [
        {"with_first_stage": {"layer_3_compressed_2_by_2": {"layer_3": 1.0}}},  # read at another width
        {"with_first_stage": {"layer_2_compressed_2_by_2": {"layer_2": 1.0}}},  # no block reads fewer tokens
        {"with_first_stage": {"layer_2": {"layer_3": 1.0}}},  # deeper than the exit
        {"without_first_stage": {"layer_2": {"first_stage": 1.0}}},
        {"with_first_stage": {"layer_2": {}}},
        {"with_first_stage": {"layer_2": {"layer_2": float("nan")}}},
        {"with_first_stage": {"cascade": {"layer_2": 1.0}}},
        {"with_first_stage": {"layer_2_fused": {"layer_2": 1.0}}},
        {"with_first_stage": {"layer_2": {"layer_2_fused": 1.0}}},
        {"with_first_stage": {"layer_2": [1.0]}},
        {"with_first_stage": {"layer_2": {"layer_2": "much"}}},
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    (tmp_path / "fusion.json").write_text(json.dumps(fusion_record(FUSION) | damage))
    with pytest.raises(BadInput, match=r"fusion\.json.*(layer_2|layer_3|cascade)"):
        read_fusion(tmp_path / "fusion.json")


def test_queries_that_were_sampled_by_hash_are_in_all_folds():
    queries = sorted((f"q{i}" for i in range(1000)), key=hash_share)[:100]  # as a sample of dev queries
    counts = np.bincount([fold_of(query, 5) for query in queries], minlength=5)
    assert counts.min() > 5
