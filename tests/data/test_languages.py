"""The words of each language, and first stages of collections in languages other than English."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import bm25s.stopwords
import pytest
import Stemmer
from mini_collections import LANGUAGES, SPLITS, write_mini_collection

from lwr.common.errors import BadInput
from lwr.config.data.first_stage import FIRST_STAGES, Bm25FirstStage, NgramLanguage, StemmedLanguage
from lwr.config.load import read_settings
from lwr.data.retrieve import retrieve
from lwr.data.words import split_into_pairs, tokenizer_of
from lwr.evaluation.measures import measures_per_query
from lwr.formats.beir import read_qrels
from lwr.formats.trec import read_run


def test_stemmed_languages_are_those_of_the_library():
    algorithms = {"porter", "dutch_porter"}  # older stemmers of English and Dutch
    assert set(get_args(StemmedLanguage)) == set(Stemmer.algorithms()) - algorithms


def test_reference_names_the_languages_with_stop_words():
    text = str(Bm25FirstStage.model_fields["language"].description)
    found = {
        language
        for language in get_args(StemmedLanguage)
        if hasattr(bm25s.stopwords, f"STOPWORDS_{language.upper()}") or language == "english"
    }
    listed = text.partition("Stop words are left out for ")[2].partition(";")[0]
    assert set(listed.lower().replace(" and ", ", ").split(", ")) == found


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        (
            "german",
            "Die HÄUSER der Straße und ein Ha\u0308uschen im Haus",
            ["haus", "strass", "hausch", "haus"],
        ),
        ("french", "Les chevaux mangeaient de l'herbe", ["cheval", "mang", "herb"]),
        ("russian", "Кошки и кошка", ["кошк", "кошк"]),
        ("turkish", "IŞIK ışık, İstanbul istanbul", ["ışık", "ışık", "istanbul", "istanbul"]),
        ("hindi", "लड़कियों लड़की", ["लड़क", "लड़क"]),  # Python's \w ends a word at a vowel sign
        ("persian", "کتاب\u200cها کتاب", ["کتاب", "کتاب"]),
        ("english", "The houses of a house", ["hous", "hous"]),
    ],
)
def test_words_are_stemmed_and_stop_words_left_out(language, text, words):
    assert tokenizer_of(language)(text) == words


@pytest.mark.parametrize("language", get_args(StemmedLanguage) + get_args(NgramLanguage))
def test_every_language_splits_texts_alike(language):
    tokenize = tokenizer_of(language)
    assert tokenize("") == []
    assert tokenize("Zebra 2026") == tokenize("zebra, 2026!") != []


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("量子计算", ["量子", "子计", "计算"]),
        ("犬。猫", ["犬", "猫"]),
        ("用GPU训练,5G网络", ["用", "gpu", "训练", "5g", "网络"]),
        ("トウキョウ", ["トウ", "ウキ", "キョ", "ョウ"]),
        ("ﾄｳ東京", ["トウ", "ウ東", "東京"]),  # half-width
        ("서울은 수도", ["서울", "울은", "수도"]),
        ("ไทยดี", ["ไท", "ทย", "ยด", "ดี"]),
        ("々、。・「」…", ["々"]),
    ],
)
def test_scripts_without_spaces_are_split_into_pairs(text, tokens):
    assert split_into_pairs(text) == tokens


def quality(collection: Path, language: str) -> float:
    """Return the mean nDCG@10 over the queries of all splits."""
    values = []
    for split in SPLITS:
        out = collection.parent / f"{split}.trec"
        retrieve(collection, out, split, Bm25FirstStage(language=language, depth=10))
        run = {query: dict(ranked) for query, ranked in read_run(out).items()}
        values += list(measures_per_query(read_qrels(collection, split), run, ["nDCG@10"])["value"])
    return sum(values) / len(values)


CHANCE = 0.19  # of 24 passages in random order: the sum over ranks to 10 of 1 / log2(rank + 1) / 24


@pytest.mark.parametrize("language", LANGUAGES)
def test_first_stage_is_far_above_chance_in_its_language(language, tmp_path):
    assert quality(write_mini_collection(language, tmp_path / "collection"), language) > 0.85 > 4 * CHANCE


def test_german_read_as_english_is_much_worse(tmp_path, monkeypatch):
    monkeypatch.setattr("lwr.data.retrieve.MOST", 1.0)  # else an error
    collection = write_mini_collection("german", tmp_path / "collection")
    assert quality(collection, "english") < quality(collection, "german") - 0.3


@pytest.mark.parametrize("language", ["chinese", "japanese"])
def test_text_without_spaces_read_as_english_is_an_error(language, tmp_path):
    collection = write_mini_collection(language, tmp_path / "collection")
    with pytest.raises(BadInput, match=r"5 of the 5 queries of test \(100%\) .*first_stage\.language"):
        retrieve(collection, tmp_path / "run", "test", Bm25FirstStage())
    assert not (tmp_path / "run").exists()


def test_half_of_the_queries_without_a_candidate_is_a_warning_and_more_an_error(tmp_path, capsys):
    collection = write_mini_collection("german", tmp_path / "collection")
    lines = (collection / "queries.jsonl").read_text(encoding="utf-8").splitlines()

    def blank(*numbers: int) -> None:
        texts = [f'{{"_id": "q{i}", "text": "xylophon"}}' if i in numbers else lines[i] for i in range(12)]
        (collection / "queries.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")

    blank(0, 1)
    retrieve(collection, tmp_path / "run", "train", Bm25FirstStage(language="german"))
    warning = "WARNING: 2 of the 4 queries of train (50%) have no candidate, such as 'q0', 'q1'"
    assert warning in capsys.readouterr().err
    blank(0, 1, 2)
    with pytest.raises(BadInput, match=r"3 of the 4 queries of train \(75%\) .*reads the texts as german"):
        retrieve(collection, tmp_path / "run", "train", Bm25FirstStage(language="german"))


@pytest.mark.parametrize(
    ("settings", "key_words"),
    [
        ("{language: auto}", ["auto is not a language", "arabic", "yiddish", "chinese"]),
        ("{language: germn}", ["germn", "did you mean `german`?", "kind: dense"]),
        ("{language: 5}", ["language", "5"]),
        ("{kind: dense}", ["model: missing"]),
        ("{kind: dense, model: ./m, language: german}", ["language: no such key", "`pooling`"]),
        ("{kind: bm25, model: ./m}", ["model: no such key", "`language`"]),
        ("{kind: sparse}", ["sparse", "bm25, dense, hybrid"]),
    ],
)
def test_wrong_settings_are_refused(settings, key_words):
    with pytest.raises(BadInput) as error:
        read_settings(settings, *FIRST_STAGES)
    assert [word for word in key_words if word not in str(error.value)] == []
