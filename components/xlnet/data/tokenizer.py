"""Converts texts to XLNet's tokens, with the published vocabulary, a trained one, or one from a directory.

A row is ``A <sep> <cls>`` or ``A <sep> B <sep> <cls>``. Tokenisation splits at white space first. The first words of a
long text therefore have the same tokens alone as in the whole text.
"""

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import DecodeStream

from xlnet import provenance
from xlnet.data import objects, unigram
from xlnet.data.tokenizer_settings import TokenizerSettings, read_settings
from xlnet.data.word_cache import WordCache
from xlnet.errors import UserError

SHIPPED = Path(__file__).parent / "vocabulary"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")
PROBE = "Ça ``va'' bien? Don't STOP: 3,000 ＡＢＣ ﬁsh"
# Of a long text, this many characters per wanted token are encoded first, and more if they give too few tokens.
PREFIX_CHARACTERS = 8


@dataclass(frozen=True)
class Encoded:
    """The token ids of a batch of rows, with special tokens and without padding."""

    input_ids: list[list[int]]
    boundaries: list[int]
    truncated: list[bool]


class Tokenizer:
    """A vocabulary with XLNet's special tokens."""

    def __init__(self, directory: Path) -> None:
        """Open a directory with ``tokenizer.json``; use :func:`load_tokenizer`."""
        self.directory = directory

    @cached_property
    def _rust(self) -> RustTokenizer:
        file = self.directory / "tokenizer.json"
        try:
            tokenizer = RustTokenizer.from_file(str(file))
        except Exception as error:  # the library raises no narrower exception
            raise UserError(f"'{file}' is not a tokenizer: {str(error).splitlines()[0]}") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if self.settings.lower_case:
            unigram.lower(tokenizer)
        return tokenizer

    @cached_property
    def _words(self) -> WordCache:
        return WordCache(self._rust)

    @cached_property
    def settings(self) -> TokenizerSettings:
        """The directory's ``tokenizer_config.json``."""
        return read_settings(self.directory)

    @cached_property
    def vocab_size(self) -> int:
        """The number of tokens, with special tokens."""
        return int(self._rust.get_vocab_size())

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """``{"pad": 5, "sep": 4, "cls": 3, "unk": 0, "mask": 6}`` in the published vocabulary."""
        ids: dict[str, int] = {}
        for name in ("pad", "sep", "cls", "unk", "mask"):
            token = self._rust.token_to_id(f"<{name}>")
            if token is None:
                raise UserError(f"tokenizer '{self.directory}' has no <{name}>; use one made for XLNet")
            ids[name] = token
        return ids

    def difference(self, other: "Tokenizer") -> str:
        """Describe in one clause where another tokenizer's ids differ; empty if no difference was found."""
        ours, theirs = self._rust.get_vocab(), other._rust.get_vocab()
        for piece, token in sorted(ours.items(), key=lambda one: one[1]):
            if theirs.get(piece) != token:
                return f"token {token} is {piece!r} here, and {other._rust.id_to_token(token)!r} there"
        if self._whole(PROBE, [], 0) != other._whole(PROBE, [], 0):
            return f"the same tokens, but {PROBE!r} is split otherwise"
        return ""

    @cached_property
    def digest(self) -> str:
        """``sha256:`` of the pieces in order and of what a sample's characters become, such as lower case."""
        normal = "".join(self._rust.encode(PROBE, add_special_tokens=False).tokens)
        return provenance.digest_json([self.pieces, normal])

    @cached_property
    def space_id(self) -> int:
        """The id of the piece that is only the mark of a space before a word; -1 if there is none."""
        found = self._rust.token_to_id("▁")
        return -1 if found is None else int(found)

    def encode(self, texts: Sequence[str], pairs: Sequence[str | None] | None, max_length: int) -> Encoded:
        """Return the token ids of rows in XLNet's layout, at most ``max_length`` per row.

        A pair that is too long loses tokens at the end of the longer text first, as in ``transformers``.
        """
        sep, cls = self.special_ids["sep"], self.special_ids["cls"]
        first = self._tokens(texts, max_length)
        if pairs is None or all(pair is None for pair in pairs):
            room = max_length - 2
            ids = [[*tokens[:room], sep, cls] for tokens in first]
            return Encoded(ids, [len(row) - 1 for row in ids], [len(tokens) > room for tokens in first])
        second = self._tokens([pair or "" for pair in pairs], max_length)
        rows = Encoded([], [], [])
        room = max_length - 3
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            if room % 2 and min(len(a), len(b)) > room // 2:  # the longer text gets the odd token: count them all
                a, b = self._whole(texts[i], a, max_length), self._whole(pairs[i] or "", b, max_length)
            keep_a, keep_b = _longest_first(len(a), len(b), room)
            rows.input_ids.append([*a[:keep_a], sep, *b[:keep_b], sep, cls])
            rows.boundaries.append(keep_a + 1)
            rows.truncated.append(keep_a < len(a) or keep_b < len(b))
        return rows

    def encode_documents(self, texts: Sequence[str], pairs: Sequence[str | None] | None = None) -> Encoded:
        """Return all token ids of a corpus's documents, each with its end: ``A <eod>`` or ``A <sep> B <eod>``."""
        found = self._words.encode(texts)
        second = self._words.encode([pair or "" for pair in pairs or [None] * len(found)])
        sep = [self.special_ids["sep"]]
        rows = [a + (sep + b if b else []) + [self.end_id] for a, b in zip(found, second, strict=True)]
        return Encoded(rows, [len(row) for row in rows], [False] * len(rows))

    def encode_part(self, text: str, mid_word: bool = False) -> list[int]:
        """Return all token ids of a part of a text, without special tokens.

        Args:
            text: the part.
            mid_word: other text comes before the part, so a part that begins without a space begins without its sign.
        """
        ids = list(self._rust.encode(text, add_special_tokens=False).ids)
        if not (mid_word and ids) or text[:1].isspace():
            return ids
        bare = self._rust.token_to_id(self.pieces[ids[0]].removeprefix("▁"))
        return ids[1:] if ids[0] == self.space_id else [ids[0] if bare is None else bare, *ids[1:]]

    def spoken(self, before: Sequence[int]) -> Callable[[int], str]:
        """Return a function that turns tokens, one after another, into what each adds to the text after ``before``."""
        # Without a token before it, the first one would lose its space.
        stream = DecodeStream(list(before[-1:]), skip_special_tokens=True)
        return lambda token: stream.step(self._rust, token) or ""

    @cached_property
    def all_special_ids(self) -> frozenset[int]:
        """The ids of all tokens that stand for no text, including ``<unk>``."""
        known = {token for token, one in self._rust.get_added_tokens_decoder().items() if one.special}
        return frozenset(known | set(self.special_ids.values()))

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids of the tokens that end a text: ``<eod>`` and ``</s>``."""
        found = {self._rust.token_to_id(name) for name in ("<eod>", "</s>")}
        return frozenset({self.end_id, *(one for one in found if one is not None)})

    @cached_property
    def end_id(self) -> int:
        """The id of the end of a document: ``<eod>``, or ``<sep>`` if the vocabulary has no ``<eod>``."""
        found = self._rust.token_to_id("<eod>")
        return self.special_ids["sep"] if found is None else int(found)

    @cached_property
    def pieces(self) -> list[str]:
        """Return all pieces, indexed by token id."""
        return [str(self._rust.id_to_token(token)) for token in range(self.vocab_size)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self._rust.decode(list(ids), skip_special_tokens=True))

    def _tokens(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        limit = PREFIX_CHARACTERS * max_length
        shortened = [text if len(text) <= limit else _prefix(text, limit) for text in texts]
        found = self._words.encode(shortened)
        for i, text in enumerate(texts):
            if len(shortened[i]) < len(text):
                found[i] = self._long(text, found[i], max_length)
        return found

    def _whole(self, text: str, tokens: list[int], max_length: int) -> list[int]:
        """Return all tokens of a text, given the tokens of its beginning."""
        seen_all = len(text) <= PREFIX_CHARACTERS * max_length
        return tokens if seen_all else self._words.encode([text])[0]

    def _long(self, text: str, tokens: list[int], max_length: int) -> list[int]:
        """Return more than ``max_length`` tokens of a long text, or all of its tokens."""
        limit = PREFIX_CHARACTERS * max_length
        while len(tokens) <= max_length and limit < len(text):
            limit *= 4
            (tokens,) = self._words.encode([_prefix(text, limit)])
        return tokens

    def save(self, directory: Path) -> None:
        """Copy the files that ``transformers.AutoTokenizer`` loads."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("spiece.model", "tokenizer.json"):
            if self.directory != directory and (self.directory / name).is_file():
                shutil.copyfile(self.directory / name, directory / name)
        if self.settings.lower_case:
            self._rust.save(str(directory / "tokenizer.json"))
        text = json.dumps(self._settings(), indent=2, sort_keys=True) + "\n"
        (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def _settings(self) -> dict[str, Any]:
        """``tokenizer_config.json``: names the class of ``transformers`` that gives the ids of ``tokenizer.json``.

        XLNet's own class always removes accents. So a vocabulary with accents names the generic class, which follows
        ``tokenizer.json``.
        """
        lower = unigram.built_by_xlnets_class(self._rust)
        xlnets = {"tokenizer_class": "XLNetTokenizer", "do_lower_case": lower, "keep_accents": False}
        return {
            **({"tokenizer_class": "PreTrainedTokenizerFast"} if lower is None else {**xlnets, "remove_space": True}),
            "padding_side": "left",
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "sep_token": "<sep>",
            "pad_token": "<pad>",
            "cls_token": "<cls>",
            "mask_token": "<mask>",
        }


def _prefix(text: str, limit: int) -> str:
    """Return at least ``limit`` characters, up to a white space if one is near, so that no word is cut."""
    for i in range(limit, min(len(text), 2 * limit)):
        if text[i].isspace():
            return text[:i]
    return text[: 2 * limit]


def _longest_first(a: int, b: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each text stay. The longer text is cut first, and then both to halves."""
    if a + b <= room:
        return a, b
    short, long = min(a, b), max(a, b)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if a <= b else (long, short)


def refuse_misfit(directory: Path, tokenizer: Tokenizer, rows: int, may_have_more: bool, trained_with: str) -> None:
    """Raise UserError if a model's weights do not fit the tokenizer beside them.

    Args:
        directory: of the model.
        tokenizer: the one in this directory.
        rows: of the embedding table.
        may_have_more: whether the table may have rows without a token, as padded ones have. A classifier never reads
            them; a language model could choose one, and there is no text for it.
        trained_with: digest of the tokenizer that the weights were trained with; empty if unknown.
    """
    tokens = tokenizer.vocab_size
    if tokens > rows or (tokens < rows and not may_have_more):
        raise UserError(
            f"'{directory}' has a tokenizer of {tokens} tokens and weights for {rows}; take both from the same model"
        )
    if trained_with not in ("", tokenizer.digest):
        raise UserError(
            f"'{directory}' has a tokenizer of the right size, but its weights were trained with another; take both "
            "from the same model"
        )


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds a vocabulary."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "spiece.model"))


def load_tokenizer(name: str | Path) -> Tokenizer:
    """Open a shipped vocabulary by name or a directory with ``tokenizer.json`` or ``spiece.model``.

    Raises:
        UserError: the vocabulary does not exist, or is damaged.
    """
    if objects.is_remote(str(name)):  # of a pretrained model
        name = objects.local_directory(str(name))
    directory = SHIPPED / name if (SHIPPED / name / "tokenizer.json").is_file() else Path(name)
    if not directory.is_dir():
        shipped = ", ".join(sorted(folder.name for folder in SHIPPED.iterdir()))
        raise UserError(
            f"data.tokenizer is '{name}'; allowed: {shipped}, train, or a directory with tokenizer.json or spiece.model"
        )
    if (directory / "tokenizer.json").is_file():
        return Tokenizer(directory)
    if not (directory / "spiece.model").is_file():
        raise UserError(
            f"data.tokenizer '{name}' has neither tokenizer.json nor spiece.model; name a tokenizer's directory"
        )
    converted = Path(tempfile.mkdtemp(prefix="xlnet-tokenizer-"))
    tokenizer = Tokenizer(converted)
    weakref.finalize(tokenizer, shutil.rmtree, converted, ignore_errors=True)
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            shutil.copyfile(directory / name, converted / name)
    try:
        unigram.write_tokenizer_json(converted)
    except UserError as error:
        raise UserError(f"tokenizer '{directory}': {error}") from None
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path) -> Tokenizer:
    """Learn a vocabulary, write it to ``directory`` and open it; see :func:`xlnet.data.unigram.train`."""
    unigram.train(texts, vocab_size, directory)
    return Tokenizer(directory)
