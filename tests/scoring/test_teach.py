"""Tests of `lwr teach`: each kind of teacher scores as its model does for a pair alone, whatever batches and shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_json
from lwr.config.model import PromptTemplate
from lwr.config.teachers.sections import (
    BiEncoderTeacher,
    CrossEncoderTeacher,
    LayerwiseTeacher,
    StandaloneTeacher,
    YesNoTeacher,
)
from lwr.formats.beir import Passage, write_collection
from lwr.formats.fusion import Fusion, fusion_record
from lwr.formats.trec import Run, read_run, read_run_tag, write_run
from lwr.model.reranker import LayerwiseReranker
from lwr.scoring.gather import gather
from lwr.scoring.teach import teach

QUERIES = {f"q{i}": f"load the object number {i}" for i in range(5)}
PASSAGES = {f"d{i}": "def decode(s): return s " + "and more " * (i % 5) + str(i) for i in range(12)}
TEMPLATE = PromptTemplate(prefix="Is it? ", query="{query}", between="|", passage="{passage}", after=["?"])
ANSWERS = {"yes_token": "Yes", "no_token": "ĠNo"}
NOT_FOUND = "d11"
"""A positive of q0 that the first stage did not find."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Save a model of each kind: classifiers of one and of two labels, decoders, an encoder, a reranker."""
    folder = tmp_path_factory.mktemp("models")
    for architecture, labels in (("bert", 1), ("bert", 2), ("llama", 1)):
        torch.manual_seed(0)
        shape = tiny.SHAPE | tiny.ARCHITECTURES[architecture] | {"num_labels": labels}
        config = AutoConfig.for_model(architecture, **shape)
        classifier = AutoModelForSequenceClassification.from_config(config)
        classifier.save_pretrained(folder / f"{architecture}-{labels}")
        tiny.tokenizer(encoder=architecture == "bert").save_pretrained(folder / f"{architecture}-{labels}")
    for architecture in ("llama", "gemma2", "qwen3_5_text", "lfm2", "bert"):
        tiny.save(architecture, folder / architecture)
    tiny.build_reranker("llama").save_pretrained(folder / "layerwise")
    return folder


@pytest.fixture
def collection(tmp_path) -> Path:
    qrels = {
        "train": {query: {f"d{i}": 1, "d1": 0} for i, query in enumerate(QUERIES)},
        "test": {"other": {"d0": 1}},
    }
    qrels["train"]["q0"][NOT_FOUND] = 1
    passages = [Passage(doc, "", text) for doc, text in PASSAGES.items()]
    write_collection(tmp_path, passages, QUERIES | {"other": "another"}, qrels)
    docs = list(PASSAGES)
    run = {
        query: [(doc, 10.0 - rank) for rank, doc in enumerate(docs[i : i + 4])]
        for i, query in enumerate(QUERIES)
    }
    write_run(tmp_path / "train.trec", run, "made-up")
    return tmp_path


def taught(teacher: StandaloneTeacher, collection: Path, shard: str = "1/1") -> Run:
    out = collection / f"{shard.replace('/', 'of')}.trec"
    teach(teacher, collection, collection / "train.trec", out, "mine", shard)
    return read_run(out)


def check_scores(run: Run, reference) -> None:
    """Compare the scores of a run with those that `reference` computes for each pair of texts alone."""
    scores = {(query, doc): score for query, docs in run.items() for doc, score in docs}
    expected = {(query, doc): reference(QUERIES[query], PASSAGES[doc]) for query, doc in scores}
    values = list(expected.values())
    np.testing.assert_allclose(list(scores.values()), values, atol=1e-4, rtol=1e-4)
    assert np.std(values) > 1e-3, "the scores do not tell pairs apart"


@pytest.mark.parametrize("name", ["bert-1", "llama-1"])
def test_cross_encoder_scores_by_its_logit(models, collection, name):
    model = AutoModelForSequenceClassification.from_pretrained(models / name).eval()
    tokenizer = tiny.tokenizer(encoder=name == "bert-1")

    @torch.inference_mode()
    def reference(query: str, passage: str) -> float:
        return model(**tokenizer(query, passage, return_tensors="pt")).logits.item()

    teacher = CrossEncoderTeacher(kind="cross_encoder", model=str(models / name), tokens_per_batch=200)
    check_scores(taught(teacher, collection), reference)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_5_text", "lfm2"])
def test_decoder_scores_by_the_difference_of_its_answers(models, collection, name):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(models / name).eval(),
        tiny.tokenizer(encoder=False),
    )
    yes, no = (tokenizer.convert_tokens_to_ids(token) for token in ANSWERS.values())

    @torch.inference_mode()
    def reference(query: str, passage: str) -> float:
        pieces = ["<s>Is it? ", query, "|", passage, "?"]
        ids = [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        return (logits[yes] - logits[no]).item()

    teacher = YesNoTeacher(
        kind="yes_no", model=str(models / name), template=TEMPLATE, tokens_per_batch=200, **ANSWERS
    )
    check_scores(taught(teacher, collection), reference)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_bi_encoder_scores_by_the_cosine_of_its_embeddings(models, collection, pooling):
    model, tokenizer = AutoModel.from_pretrained(models / "bert").eval(), tiny.tokenizer(encoder=True)

    @torch.inference_mode()
    def embed(text: str) -> torch.Tensor:
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return states.mean(dim=0) if pooling == "mean" else states[0]

    def reference(query: str, passage: str) -> float:
        return (
            7 * torch.cosine_similarity(embed(f"query: {query}"), embed(f"passage: {passage}"), dim=0).item()
        )

    prefixes = {"query_prefix": "query: ", "passage_prefix": "passage: "}
    settings = {"model": str(models / "bert"), "pooling": pooling, "scale": 7, "tokens_per_batch": 200}
    check_scores(taught(BiEncoderTeacher(kind="bi_encoder", **settings, **prefixes), collection), reference)


def test_layerwise_reranker_scores_at_the_layer(models, collection):
    reranker = LayerwiseReranker.from_pretrained(models / "layerwise", device="cpu")
    teacher = LayerwiseTeacher(kind="layerwise", model=str(models / "layerwise"), layer=3)
    check_scores(taught(teacher, collection), lambda *pair: float(reranker.score([pair], layers=[3])[0, 0]))


def test_layerwise_reranker_scores_fused_without_the_first_stage(models, collection):
    weights = {k: {f"layer_{i}": i / 2 for i in range(2, k + 1)} for k in (2, 3, 4)}
    with_first_stage = {k: {"first_stage": 100.0} | features for k, features in weights.items()}
    write_json(collection / "fusion.json", fusion_record(Fusion(with_first_stage, weights)))
    reranker = LayerwiseReranker.from_pretrained(models / "layerwise", device="cpu")

    def reference(*pair: str) -> float:
        two, three = reranker.score([pair], layers=[2, 3])[:, 0]
        return 1.0 * float(two) + 1.5 * float(three)

    settings = {"model": str(models / "layerwise"), "layer": 3, "fusion": str(collection / "fusion.json")}
    check_scores(taught(LayerwiseTeacher(kind="layerwise", **settings), collection), reference)


def bi_encoder(models: Path) -> BiEncoderTeacher:
    return BiEncoderTeacher(kind="bi_encoder", model=str(models / "bert"))


def test_first_stage_scores_are_added_with_their_weight(models, collection):
    alone, together = bi_encoder(models), bi_encoder(models).model_copy(update={"first_stage_weight": 0.5})
    cosines = {query: dict(docs) for query, docs in taught(alone, collection).items()}
    for query, docs in taught(together, collection).items():
        first_stage = dict(read_run(collection / "train.trec")[query])
        lowest = min(first_stage.values())
        expected = {
            doc: cosine + 0.5 * first_stage.get(doc, lowest) for doc, cosine in cosines[query].items()
        }
        assert dict(docs) == pytest.approx(expected, abs=1e-5)
        assert [score for _, score in docs] == pytest.approx(
            sorted(expected.values(), reverse=True), abs=1e-5
        )
    assert NOT_FOUND in cosines["q0"]


def test_candidates_and_positives_are_scored_once(models, collection):
    candidates = read_run(collection / "train.trec")
    expected = {query: {doc for doc, _ in docs} for query, docs in candidates.items()}
    expected["q0"].add(NOT_FOUND)
    found = taught(bi_encoder(models), collection)
    assert {query: {doc for doc, _ in docs} for query, docs in found.items()} == expected
    assert list(found) == list(candidates)
    assert read_run_tag(collection / "1of1.trec") == "mine"


@pytest.mark.parametrize("count", [2, 7])
def test_gathered_shards_equal_the_complete_run(models, collection, count):
    complete = taught(bi_encoder(models), collection)
    shards = [f"{k}/{count}" for k in range(1, count + 1)]
    parts = [taught(bi_encoder(models), collection, shard) for shard in shards]
    assert sum(map(len, parts)) == len(complete)
    gather([collection / f"{shard.replace('/', 'of')}.trec" for shard in shards], collection / "joined.trec")
    joined = read_run(collection / "joined.trec")
    assert list(joined) == list(complete)
    for query, docs in complete.items():
        assert dict(joined[query]) == pytest.approx(dict(docs), abs=1e-4)


def test_shards_with_the_same_query_are_refused(models, collection):
    taught(bi_encoder(models), collection)
    with pytest.raises(BadInput, match=r"1of1\.trec: query 'q0' is in two shards"):
        gather([collection / "1of1.trec"] * 2, collection / "joined.trec")


def test_score_that_is_not_finite_is_refused(models, collection, tmp_path):
    broken = AutoModelForSequenceClassification.from_pretrained(models / "bert-1")
    broken.classifier.weight.data[0, 0] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    tiny.tokenizer(encoder=True).save_pretrained(tmp_path / "broken")
    teacher = CrossEncoderTeacher(kind="cross_encoder", model=str(tmp_path / "broken"))
    with pytest.raises(FloatingPointError, match="query 'q0' and passage 'd0' is not finite"):
        taught(teacher, collection)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"kind": "cross_encoder", "model": "bert-2"}, r"bert-2 has 2 labels.*one label"),
        ({"kind": "cross_encoder", "model": "bert"}, r"bert is BertModel, not a ForSequenceClassification"),
        ({"kind": "yes_no", "model": "llama"}, r"llama has no token 'yes'; .*`yes_token`"),
        ({"kind": "layerwise", "model": "layerwise", "layer": 1}, r"layer 1 has no head; exits are 2\.\.4"),
        (
            {"kind": "bi_encoder", "model": "bert", "max_len": 513},
            r"max_len is 513, but .* has 512 positions",
        ),
        ({"kind": "cross_encoder", "model": "bert-1", "passage_max_len": 449}, r"513 tokens.*512 positions"),
    ],
)
def test_model_that_cannot_be_such_a_teacher_is_refused(models, collection, teacher, message):
    kinds = {"cross_encoder": CrossEncoderTeacher, "yes_no": YesNoTeacher}
    kinds |= {"layerwise": LayerwiseTeacher, "bi_encoder": BiEncoderTeacher}
    section = kinds[teacher["kind"]](**teacher | {"model": str(models / teacher["model"])})
    with pytest.raises(BadInput, match=message):
        taught(section, collection)


def test_digest_changes_with_any_file_of_the_model(models, tmp_path):
    folder = tiny.save("bert", tmp_path / "bert")
    teacher = BiEncoderTeacher(kind="bi_encoder", model=str(folder))
    digests = [teacher.digest()]
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).touch()
        assert teacher.digest() == digests[-1]
        (folder / name).write_bytes(
            content.replace(b"512", b"513") if name == "config.json" else content[:-1] + b"x"
        )
        digests.append(teacher.digest())
    assert len(set(digests)) == 3
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 513
