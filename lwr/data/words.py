"""Split texts into the words that BM25 counts, by their language.

Languages with Snowball stemmers are split into words. Chinese, Japanese, Korean and Thai are split into pairs of
characters, as by Lucene's CJKAnalyzer: no spaces separate their words, or in Korean particles follow them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import get_args

import Stemmer

from lwr.config.data.first_stage import Language, NgramLanguage

Tokenize = Callable[[str], list[str]]

ENGLISH_WORD = re.compile(r"\b\w\w+\b")
ENGLISH_STOP_WORDS = frozenset(  # Lucene's
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these "
    "they this to was will with".split()
)
# The scripts of Chinese, Japanese and Korean, and Thai without its currency sign, punctuation and digits.
CHARACTERS = "々〆〇ぁ-ゖゝ-ゟァ-ヺー-ヿㇰ-ㇿ㐀-䶿一-鿿가-힣\U00020000-\U000323afก-ฺเ-๎"
RUN = re.compile(f"(?P<characters>[{CHARACTERS}]+)|[^\\W{CHARACTERS}]{{2,}}")


def tokenizer_of(language: Language) -> Tokenize:
    """Return the function that splits a text of a language.

    English is split as Lucene and bm25s do. The other languages are brought into Unicode's form NFKC, and the marks of
    their scripts, such as the vowel signs of Hindi, are parts of words.
    """
    if language in get_args(NgramLanguage):
        return split_into_pairs
    stem = lru_cache(2**16)(Stemmer.Stemmer(language, 0).stemWord)  # faster than the stemmer's own cache
    if language == "english":
        word, stop_words, normalize = ENGLISH_WORD, ENGLISH_STOP_WORDS, str.lower
    else:
        word, stop_words = _word_with_marks(), _read_stop_words(language)
        normalize = _lower_turkish if language == "turkish" else _lower

    def tokenize(text: str) -> list[str]:
        """Return the words of a text: lower-cased, two letters or more, no stop words, stemmed."""
        return [stem(found) for found in word.findall(normalize(text)) if found not in stop_words]

    return tokenize


def split_into_pairs(text: str) -> list[str]:
    """Return the pairs of neighbouring characters, and the words of other scripts, lower-cased, two letters or more.

    A character without such a neighbour stands alone.
    """
    tokens: list[str] = []
    for run in RUN.finditer(_lower(text)):
        characters = run["characters"]
        if characters is None or len(characters) == 1:
            tokens.append(run[0])
        else:
            tokens += [characters[i : i + 2] for i in range(len(characters) - 1)]
    return tokens


def _lower(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _lower_turkish(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("I", "ı").replace("İ", "i").lower()


def _word_with_marks() -> re.Pattern[str]:
    r"""Return a pattern of words of two characters or more; Python's `\w` alone ends a word at a combining mark."""
    marks = "".join(char for char in map(chr, range(0x300, 0x10000)) if unicodedata.category(char)[0] == "M")
    joiners = "\u200c\u200d"  # inside words of Persian and of Indian scripts
    return re.compile(f"\\w[\\w{marks}{joiners}]+")


def _read_stop_words(language: Language) -> frozenset[str]:
    """Return the stop words that the package bm25s has for a language; none if it has no list."""
    from bm25s import stopwords  # imported here, as English does not need it and it takes long

    return frozenset(getattr(stopwords, f"STOPWORDS_{language.upper()}", ()))
