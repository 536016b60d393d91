"""A folder in BEIR layout is checked, split and copied."""

import gzip

import pytest

from lwr.common.errors import BadInput
from lwr.config.data.dataset import DatasetConfig
from lwr.config.data.sources import BeirFolderSource
from lwr.data.collect import collect as collect_dataset
from lwr.formats.beir import (
    SPLITS,
    Passage,
    read_corpus,
    read_qrels,
    read_queries,
    sample_queries,
    write_collection,
)

N = 200


@pytest.fixture
def folder(tmp_path):
    """Write a collection with train queries alone, and one query without judgements."""
    corpus = [Passage(f"d{i}", "title", f"text {i}") for i in range(N)]
    queries = {f"q{i}": f"query {i}" for i in range(N)} | {"unjudged": "query"}
    write_collection(tmp_path / "in", corpus, queries, {"train": {f"q{i}": {f"d{i}": 1} for i in range(N)}})
    return tmp_path / "in"


def move(folder, split, count):
    """Move the first train queries to a split of their own."""
    train = (folder / "qrels" / "train.tsv").read_text().splitlines()
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(train[: count + 1]) + "\n")
    (folder / "qrels" / "train.tsv").write_text("\n".join([train[0], *train[count + 1 :]]) + "\n")


def source(folder, **shares):
    return BeirFolderSource(kind="beir", path=str(folder), **shares)


def collect(source, out, **queries):
    collect_dataset(DatasetConfig(source=source, queries=queries), out)


def test_dev_and_test_are_split_off_train(folder, tmp_path):
    collect(source(folder, dev_from_train=0.2, test_from_train=0.3), tmp_path / "out")
    qrels = {split: read_qrels(tmp_path / "out", split) for split in SPLITS}
    assert sum(len(judged) for judged in qrels.values()) == N
    assert len({query_id for judged in qrels.values() for query_id in judged}) == N
    assert abs(len(qrels["dev"]) / N - 0.2) < 0.08
    assert abs(len(qrels["test"]) / N - 0.3) < 0.08
    assert all(len(list(read_corpus(tmp_path / "out", split))) == N for split in SPLITS)
    assert "unjudged" not in read_queries(tmp_path / "out")


def test_query_keeps_its_split_when_others_are_removed(folder, tmp_path):
    collect(source(folder, dev_from_train=0.2, test_from_train=0.3), tmp_path / "all")
    move(folder, "dev", 100)
    collect(source(folder, test_from_train=0.3), tmp_path / "half")
    assert read_qrels(tmp_path / "half", "test").items() < read_qrels(tmp_path / "all", "test").items()


def test_existing_splits_are_kept(folder, tmp_path):
    move(folder, "dev", 20)
    move(folder, "test", 30)
    collect(source(folder), tmp_path / "out")
    for split in SPLITS:
        assert read_qrels(tmp_path / "out", split) == read_qrels(folder, split)


def test_missing_split_without_a_share_is_refused(folder, tmp_path):
    with pytest.raises(BadInput, match=r"no qrels/dev\.tsv.*dev_from_train"):
        collect(source(folder, test_from_train=0.3), tmp_path / "out")


def test_share_for_an_existing_split_is_refused(folder, tmp_path):
    move(folder, "dev", 20)
    with pytest.raises(BadInput, match=r"qrels/dev\.tsv.*dev_from_train must be 0"):
        collect(source(folder, dev_from_train=0.1, test_from_train=0.3), tmp_path / "out")


def test_shares_must_leave_train_queries(folder):
    with pytest.raises(ValueError, match="below 1"):
        source(folder, dev_from_train=0.5, test_from_train=0.5)


def test_split_is_sampled_by_hash_and_others_are_complete(folder, tmp_path):
    collect(source(folder, dev_from_train=0.2, test_from_train=0.3), tmp_path / "all")
    collect(source(folder, dev_from_train=0.2, test_from_train=0.3), tmp_path / "few", test=3)
    everything, few = read_qrels(tmp_path / "all", "test"), read_qrels(tmp_path / "few", "test")
    assert list(few) == sample_queries(everything, 3)
    assert read_qrels(tmp_path / "few", "train") == read_qrels(tmp_path / "all", "train")
    assert len(read_queries(tmp_path / "few")) == len(read_queries(tmp_path / "all")) - len(everything) + 3


def test_folder_with_test_queries_alone_is_only_ranked(folder, tmp_path):
    (folder / "qrels" / "train.tsv").rename(folder / "qrels" / "test.tsv")
    (folder / "qrels" / "dev.tsv").unlink()
    collect(source(folder), tmp_path / "out")
    assert read_qrels(tmp_path / "out", "test") == read_qrels(folder, "test")
    assert read_qrels(tmp_path / "out", "train") == read_qrels(tmp_path / "out", "dev") == {}


def test_missing_train_split_is_refused(folder, tmp_path):
    (folder / "qrels" / "train.tsv").unlink()
    with pytest.raises(BadInput, match=r"train\.tsv: no such file"):
        collect(source(folder, dev_from_train=0.2, test_from_train=0.3), tmp_path / "out")


def test_judged_passage_outside_the_corpus_is_refused(folder, tmp_path):
    with (folder / "qrels" / "train.tsv").open("a") as opened:
        opened.write("q0\tnowhere\t1\n")
    with pytest.raises(BadInput, match=r"'nowhere'.*corpus\.jsonl"):
        collect(source(folder, dev_from_train=0.2, test_from_train=0.3), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_missing_passage_is_reported_in_files_that_exist(folder, tmp_path):
    with (folder / "qrels" / "train.tsv").open("a") as opened:
        opened.write("q0\tnowhere\t1\n")
    with pytest.raises(BadInput) as error:
        collect(source(folder, dev_from_train=0.98, test_from_train=0.01), tmp_path / "out")
    assert f"{folder}/qrels/train.tsv" in str(error.value)
    assert f"{folder}/corpus.jsonl" in str(error.value)


def test_dangling_judgements_are_left_out_on_request(folder, tmp_path, capsys):
    expected = {split: read_qrels(folder, split) for split in ["train"]}
    with (folder / "qrels" / "train.tsv").open("a") as opened:
        opened.write("q0\tnowhere\t1\nunknown\td1\t1\n")
    collect(source(folder, dev_from_train=0.2, test_from_train=0.3, dangling="drop"), tmp_path / "out")
    kept = {query: docs for split in SPLITS for query, docs in read_qrels(tmp_path / "out", split).items()}
    assert kept == expected["train"]
    message = capsys.readouterr().err
    assert "'nowhere'" in message
    assert "'unknown'" in message


def test_archives_are_read_in_place_of_plain_files(folder, tmp_path):
    config = source(folder, dev_from_train=0.2, test_from_train=0.3)
    collect(config, tmp_path / "plain")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    for split in ("dev", "test"):
        (folder / f"qrels/{split}.tsv").unlink()
    collect(config, tmp_path / "archives")
    for name in ("corpus.jsonl", "queries.jsonl", *(f"qrels/{split}.tsv" for split in SPLITS)):
        assert (tmp_path / "archives" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    (folder / "corpus.jsonl").touch()
    with pytest.raises(BadInput, match=r"corpus\.jsonl: corpus\.jsonl\.gz .*remove one"):
        collect(config, tmp_path / "both")


def test_queries_without_a_relevant_passage_are_counted(folder, tmp_path, capsys):
    path = folder / "qrels" / "train.tsv"
    path.write_text(path.read_text().replace("q0\td0\t1\n", "q0\td0\t0\n"))
    collect(source(folder, dev_from_train=0.2, test_from_train=0.3), tmp_path / "out")
    assert "have no passage with a grade above 0, such as 'q0'" in capsys.readouterr().err
    path.write_text(path.read_text().replace("\t1\n", "\t0\n"))
    with pytest.raises(BadInput, match=r"train: none of the .* queries has a passage with a grade above 0"):
        collect(source(folder, dev_from_train=0.2, test_from_train=0.3), tmp_path / "none")
