"""Words from the cache have the ids that the library gives to whole texts, whatever the characters and tokenizers."""

import json
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from xlnet.data import word_cache
from xlnet.data.tokenizer import load_tokenizer, train_tokenizer
from xlnet.data.word_cache import WordCache

EXAMPLES = int(os.environ.get("READER_EXAMPLES", "0"))
# What could tie a word to its neighbours: marks, joiners, spaces of all kinds, controls, parts of special tokens.
ODD = " \u0301\u0308\u200d\u200c\ufe0f\u00a0\u2028\u0085\x1c\x1f\x0b\x0c\u0600\u0d4e\u1100\u1161\u11a8\ud55c"
ODD += "\x7f\x80\x96\u00ad\u00b4\u00a8\u2581\u2585"
USUAL = ["good", "the", "The", "caf\u00e9", "``so''", "<sep>", "<s", "k>", "\u201cyes\u201d", "👍🏽", "ﬁsh", "x" * 60]
WORDS = st.one_of(
    st.sampled_from(USUAL),
    st.text(st.one_of(st.sampled_from(list(ODD)), st.characters(exclude_categories=["Cs"])), max_size=6),
)
SPACE = st.sampled_from([" ", " ", " ", "  ", "\t", "\n", "\r\n", "\u00a0", ""])
TEXT = st.lists(st.tuples(WORDS, SPACE), max_size=8).map(lambda parts: "".join(map("".join, parts)))
TEXTS = st.lists(TEXT, max_size=4)


def library(rust: RustTokenizer, texts: list[str]) -> list[list[int]]:
    return [one.ids for one in rust.encode_batch_fast(texts, add_special_tokens=False)]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WordCache]:
    """Of the shipped vocabulary, of one learnt here, and of both with lower case; their caches fill as tests go on."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([f"das schöne Café {number} 한국어 naïve fish" for number in range(99)], 40, folder / "learnt")
    found = {}
    for name in ("xlnet-base-cased", str(folder / "learnt")):
        for lower in (False, True):
            directory = folder / f"{len(found)}"
            load_tokenizer(name).save(directory)
            settings_file = directory / "tokenizer_config.json"
            settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"do_lower_case": lower}))
            found[f"{name[:5]} {lower}"] = load_tokenizer(directory)._words
    return found


@settings(max_examples=EXAMPLES or 100, derandomize=not EXAMPLES, database=None, deadline=None)
@given(TEXTS)
def test_words_of_a_cache_have_the_ids_of_the_whole_text(caches: dict[str, WordCache], texts: list[str]) -> None:
    for name, cache in caches.items():
        assert cache._is_usable, name
        for _ in range(2):  # the second time from memory
            assert cache.encode(texts) == library(cache._rust, texts), name


@pytest.mark.parametrize(
    "change",
    [
        lambda rust: setattr(rust, "pre_tokenizer", pre_tokenizers.Metaspace()),
        lambda rust: setattr(rust, "normalizer", normalizers.Replace(Regex("a b"), "c")),
        lambda rust: setattr(rust, "normalizer", normalizers.Replace("a b", "c")),
        lambda rust: setattr(rust, "normalizer", normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])),
        lambda rust: rust.add_tokens([AddedToken("a b", normalized=False)]),
        lambda rust: rust.add_tokens([AddedToken("b", normalized=True)]),
    ],
)
def test_a_tokenizer_that_looks_past_a_word_is_left_to_the_library(tmp_path, change) -> None:
    rust = load_tokenizer("xlnet-base-cased")._rust
    whole = RustTokenizer.from_str(rust.to_str())
    change(whole)
    texts = ["a b c", "b", " a  b "]
    assert WordCache(whole).encode(texts) == library(whole, texts)
    assert not WordCache(whole)._is_usable


def test_a_full_cache_takes_no_more_words_and_stays_right(monkeypatch) -> None:
    monkeypatch.setattr(word_cache, "MOST_WORDS", 5)
    cache = WordCache(load_tokenizer("xlnet-base-cased")._rust)
    for texts in (["one two three"], ["four five six seven"], ["one four eight"], ["nine ten " * 3]):
        assert cache.encode(texts) == library(cache._rust, texts)
        assert len(cache._known) <= 5


def test_threads_share_a_cache() -> None:
    cache = WordCache(load_tokenizer("xlnet-base-cased")._rust)
    texts = [" ".join(f"word{number * step % 97}" for number in range(200)) for step in range(1, 9)]
    expected, wrong = library(cache._rust, texts), []

    def look(text: str, ids: list[int]) -> None:
        for _ in range(20):
            if cache.encode([text]) != [ids]:
                wrong.append(text)

    threads = [threading.Thread(target=look, args=pair) for pair in zip(texts, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
