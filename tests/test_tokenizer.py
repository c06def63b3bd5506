"""Tokens: the same ids as transformers' XLNet tokenizer, at any length, for any script."""

import gc
import io
import json
import shutil
import unicodedata

import pytest
import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from words_of_languages import WORDS

from xlnet.data.tokenizer import PREFIX_CHARACTERS, SHIPPED, load_tokenizer, train_tokenizer
from xlnet.errors import UserError

TEXTS = [
    "Wow... Loved this place.",
    "naïve café, ``quoted'' and ''so''",
    "  leading,   inner\tand trailing  ",
    "很好的电影，我喜欢。 good",
    "emoji 👍🏽 and \u200bzero width, Ａｂｃ full width",
    "a<sep>b <cls> <mask> </s>",
    "x",
    "1,234.56 $9.99 #tag @name http://example.org/?q=1",
    "word " * 300,
]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    tokenizer = load_tokenizer("xlnet-base-cased")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return tokenizer, AutoTokenizer.from_pretrained(folder)


def assert_same(ours, theirs, texts, pairs, max_length):
    got = ours.encode(texts, pairs, max_length)
    expected = theirs(texts, pairs, truncation=True, max_length=max_length, return_token_type_ids=True)
    assert got.input_ids == expected["input_ids"]
    for ids, boundary, segments in zip(got.input_ids, got.boundaries, expected["token_type_ids"], strict=True):
        assert segments == [0] * boundary + [1] * (len(ids) - 1 - boundary) + [2]


@pytest.mark.parametrize("max_length", [4, 7, 32, 512])
def test_single_texts_equal_transformers(shipped, max_length):
    assert_same(*shipped, TEXTS, None, max_length)


@pytest.mark.parametrize("max_length", [4, 5, 8, 33, 64, 512])
def test_pairs_equal_transformers(shipped, max_length):
    firsts = [a for a in TEXTS for _ in TEXTS]
    seconds = [b for _ in TEXTS for b in TEXTS]
    assert_same(*shipped, firsts, seconds, max_length)


def test_real_rows_equal_transformers(shipped, shared_data):
    lines = (shared_data / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert_same(*shipped, [line.split("\t")[1] for line in lines], None, 64)
    rte = [line.split("\t") for line in (shared_data / "rte" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    assert_same(*shipped, [row[0] for row in rte], [row[1] for row in rte], 96)


GIANTS = {
    "words": "An unremarkable sentence, again. " * 20_000,
    "one word": "abcdefgh" * 60_000,
    "accents that vanish": "\u0301" * 300_000 + " tail " * 2000,
    "white space": " " * 500_000 + "end",
}


@pytest.mark.parametrize("name", GIANTS)
def test_a_giant_text_has_the_tokens_of_the_whole(shipped, name):
    ours, theirs = shipped
    text = GIANTS[name]
    assert len(text) > PREFIX_CHARACTERS * 16
    assert ours.encode([text], None, 16).input_ids == theirs([text], truncation=True, max_length=16)["input_ids"]


def test_special_ids_are_the_published_ones(shipped):
    assert shipped[0].special_ids == {"pad": 5, "sep": 4, "cls": 3, "unk": 0, "mask": 6}
    assert shipped[0].vocab_size == 32000
    assert shipped[1].padding_side == "left"


@pytest.fixture(scope="module")
def german(tmp_path_factory):
    stems = ["Häus", "Straß", "Mädch", "geh", "schön", "weiß", "Bröt", "größ", "fünf", "lauf", "Kind", "Baum"]
    endings = ["er", "e", "chen", "en", "lich", "ung", "heit", "s"]
    words = [stem + ending for stem in stems for ending in endings]
    texts = [" ".join(words[(i * k) % len(words)] for k in range(1, 9)) for i in range(500)]
    folder = tmp_path_factory.mktemp("trained")
    return texts, folder, train_tokenizer(texts, 64, folder)


def test_a_trained_vocabulary_has_xlnets_special_tokens_and_loads_in_transformers(german, tmp_path):
    texts, _, tokenizer = german
    assert tokenizer.vocab_size == 64
    assert tokenizer.special_ids == {"pad": 5, "sep": 4, "cls": 3, "unk": 0, "mask": 6}
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert_same(tokenizer, theirs, texts[:50], None, 24)
    assert 0 not in tokenizer.encode(texts, None, 512).input_ids[0]


def test_training_twice_gives_the_same_bytes(german, tmp_path):
    texts, folder, _ = german
    train_tokenizer(texts, 64, tmp_path)
    for name in ("spiece.model", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The system's temporary directory."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


def test_a_sentencepiece_model_alone_is_enough(german, tmp_path, temporary):
    texts, folder, tokenizer = german
    (tmp_path / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
    again = load_tokenizer(tmp_path)
    assert again.encode(texts, None, 32) == tokenizer.encode(texts, None, 32)
    assert again.directory.parent == temporary
    del again
    gc.collect()
    assert not list(temporary.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A vocabulary for each language, learnt from its words, some of them in the decomposed form."""
    found = {}
    for language, line in WORDS.items():
        words = line.split()
        texts = [" ".join(words[i : i + 5]) for i in range(len(words))]
        texts[::3] = [unicodedata.normalize("NFD", text) for text in texts[::3]]
        found[language] = train_tokenizer(texts, 0, tmp_path_factory.mktemp(language))
    return found


@pytest.mark.parametrize("language", WORDS)
def test_distinct_words_stay_distinct_in_every_language(trained, language, tmp_path):
    """Also decomposed, also in transformers, and in the pieces that sentencepiece itself would take."""
    words, tokenizer = WORDS[language].split(), trained[language]
    ids = tokenizer.encode(words, None, 64).input_ids
    assert len(set(words)) == len(words) == len(set(map(tuple, ids)))
    assert not any(0 in row for row in ids), "nothing is unknown"
    assert tokenizer.encode([unicodedata.normalize("NFD", word) for word in words], None, 64).input_ids == ids
    own = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.directory / "spiece.model"))
    assert sum(map(len, ids)) - 2 * len(ids) == pytest.approx(sum(map(len, own.encode(words))), rel=0.05)
    tokenizer.save(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert_same(tokenizer, loaded, words, words[::-1], 32)
        assert loaded.padding_side == "left"


def test_the_tokens_are_as_few_as_sentencepieces_own(trained):
    """Against a vocabulary of the same size that sentencepiece learns by itself, over all languages at once."""
    texts = [line for line in WORDS.values() for _ in range(3)]
    model = io.BytesIO()
    tokenizer = train_tokenizer(texts, 500, trained["German"].directory.parent)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=500, character_coverage=1.0, minloglevel=2
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = sum(len(row) - 2 for row in tokenizer.encode(texts, None, 4096).input_ids)
    assert ours == pytest.approx(sum(map(len, theirs.encode(texts))), rel=0.05)


ODD = ["", " \u3000 ", "\x1c\x85", "▁▁", "\u2585\u2585", "e\u0301" * 50, "\uff21\uff22㈱ﷺ", "\u200b\u00ad\ufeff"]


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_have_transformers_ids(trained, text, tmp_path):
    tokenizer = trained["Japanese"]
    tokenizer.save(tmp_path)
    assert_same(tokenizer, AutoTokenizer.from_pretrained(tmp_path), [text], None, 64)


def test_the_vocabulary_shrinks_to_what_the_text_supports_and_grows_with_its_script(tmp_path):
    assert train_tokenizer(["a few words only"] * 10, 0, tmp_path).vocab_size < 40
    ideographs = [chr(0x4E00 + i) + chr(0x4E00 + i * 7 % 9000) for i in range(9000)]
    tokenizer = train_tokenizer(ideographs, 0, tmp_path)
    assert tokenizer.vocab_size > 9000
    assert not any(0 in row for row in tokenizer.encode(ideographs, None, 8).input_ids)
    small = train_tokenizer(ideographs, 500, tmp_path)
    assert small.vocab_size == 500, "the commonest characters, where there is no room for all"
    with pytest.raises(UserError, match="no vocabulary can be learnt from the training text"):
        train_tokenizer([" "], 0, tmp_path)


def test_the_published_sentencepiece_model_alone_gives_the_published_ids(shipped, tmp_path):
    shutil.copyfile(SHIPPED / "xlnet-base-cased" / "spiece.model", tmp_path / "spiece.model")
    texts = [*TEXTS, *ODD, "zero\u200bwidth x\u200dy", "bell\x07", *WORDS.values()]
    assert load_tokenizer(tmp_path).encode(texts, None, 256) == shipped[0].encode(texts, None, 256)


@pytest.mark.parametrize("lower", [False, True])
def test_settings_beside_a_sentencepiece_model_alone_are_followed(lower, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    shutil.copyfile(SHIPPED / "xlnet-base-cased" / "spiece.model", theirs / "spiece.model")
    settings = {"tokenizer_class": "XLNetTokenizer", "do_lower_case": lower}
    (theirs / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = load_tokenizer(theirs)
    tokenizer.save(ours)
    assert_same(tokenizer, AutoTokenizer.from_pretrained(ours), ["Wow THIS Place", "Naïve Café"], None, 32)
    assert (tokenizer.encode(["wow"], None, 8) == tokenizer.encode(["WOW"], None, 8)) is lower


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"data.tokenizer is 'bert'; allowed: xlnet-base-cased, train, or a directory"):
        load_tokenizer("bert")
    with pytest.raises(UserError, match=r"has neither tokenizer.json nor spiece.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(
        UserError, match="data.vocab_size is 30000, more than the training text has .* to [0-9]+ or less"
    ):
        train_tokenizer(["a few words only"] * 10, 30_000, tmp_path)


@pytest.mark.parametrize("content", [b"", b"no model", bytes(range(256)) * 20])
def test_a_damaged_sentencepiece_model_is_one_line(tmp_path, temporary, content):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer '.*': spiece.model is not a SentencePiece model, or is damaged"):
        load_tokenizer(tmp_path)
    assert not list(temporary.iterdir())
