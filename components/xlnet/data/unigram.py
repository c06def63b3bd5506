"""Learns unigram vocabularies (Kudo 2018), and writes the ``tokenizer.json`` that ``transformers`` loads.

A vocabulary must be learnt from texts in the normal form that it is applied to; otherwise pieces become ``<unk>``. The
published vocabulary knows letters without their marks (NFKD, then marks removed). Vocabularies learnt here keep the
marks (NFKC). Their texts go through the same normaliser that is saved with the vocabulary.
"""

import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from xlnet.data.tokenizer_settings import read_settings
from xlnet.data.wire import first_bytes
from xlnet.errors import UserError
from xlnet.recipe import AUTO_VOCABULARY

SPECIALS = ("<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")  # ids 1 to 8, after <unk>
TRAINING_SENTENCES = 200_000  # bounds the trainer's memory; more change a vocabulary little
TRAINING_CHARACTERS = 4000  # used of each text
CHARACTER_SHARE = 0.75  # highest share of single characters if no size is given
LARGEST_AUTO_VOCABULARY = 32_000
RESERVED = "\u2585"  # sentencepiece's own sign for an unknown character; it skips texts that hold it
INVISIBLE = r"[\p{Cc}\x{200B}\x{200E}\x{200F}\x{2060}\x{FEFF}]"  # characters that belong to no word; joiners do


def train(texts: Iterable[str], vocab_size: int, directory: Path) -> None:
    """Learn a vocabulary and write ``spiece.model`` and ``tokenizer.json`` to ``directory``, which is made if need be.

    The same texts give the same bytes. At most a bounded sample of the texts is used. Every character of it becomes a
    piece where there is room. ``vocab_size`` counts special pieces; 0: what the texts support, at most about 8,000.

    Raises:
        UserError: sentencepiece is missing, or the texts are too few for ``vocab_size`` pieces.
    """
    try:
        import sentencepiece
    except ImportError:
        raise UserError("data.tokenizer = 'train' needs sentencepiece: pip install sentencepiece") from None
    directory.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()  # in memory, because a file's name would become part of the model's bytes
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as sentences:
        characters = _write_sentences(texts, sentences)
        size = vocab_size or _auto_size(len(characters))
        too_rare = _too_rare(characters, size)
        sentences.seek(0)
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line.rstrip("\n").translate(too_rare) for line in sentences),
                model_writer=model,
                model_type="unigram",
                vocab_size=size,
                hard_vocab_limit=bool(vocab_size),
                character_coverage=1.0,
                normalization_rule_name="nfkc",  # changes nothing here, and makes spiece.model right on its own
                unk_id=0,
                bos_id=1,
                eos_id=2,
                pad_id=-1,
                control_symbols=list(SPECIALS[2:]),
                max_sentence_length=4 * TRAINING_CHARACTERS,
                num_threads=1,  # more make the vocabulary depend on their number
                minloglevel=2,
            )
        except RuntimeError as error:
            raise _too_few(str(error), vocab_size) from None
    (directory / "spiece.model").write_bytes(model.getvalue())
    write_tokenizer_json(directory, keep_marks=True)


def _write_sentences(texts: Iterable[str], file: Any) -> Counter[str]:
    """Write one line per text in normal form, and return how often each character occurs."""
    characters: Counter[str] = Counter()
    for number, text in enumerate(texts):
        if number == TRAINING_SENTENCES:
            break
        words = " ".join(_words(text[:TRAINING_CHARACTERS]))[:TRAINING_CHARACTERS].replace(RESERVED, " ")
        if words.strip():
            characters.update(words)
            file.write(words + "\n")
    del characters[" "]
    return characters


def _words(text: str) -> Iterator[str]:
    normal = _kept_form(lower=False).normalize_str(text)
    return (word for word, _ in pre_tokenizers.WhitespaceSplit().pre_tokenize_str(normal))


def _auto_size(characters: int) -> int:
    return min(LARGEST_AUTO_VOCABULARY, max(AUTO_VOCABULARY, int(characters / CHARACTER_SHARE)))


def _too_rare(characters: Counter[str], size: int) -> dict[int, str]:
    """Return a table for :meth:`str.translate` that replaces the rarest characters by spaces if not all have room."""
    room = size - len(SPECIALS) - 3  # <unk>, the sign for a space, and one piece that is not a character
    return {ord(character): " " for character, _ in characters.most_common()[max(1, room) :]}


def _too_few(problem: str, vocab_size: int) -> UserError:
    if limit := re.search(r"<= *(\d+)", problem):
        return UserError(
            f"data.vocab_size is {vocab_size}, more than the training text has pieces for; "
            f"set data.vocab_size to {limit.group(1)} or less, or leave it out"
        )
    given = f"; data.vocab_size is {vocab_size}" if vocab_size else ""
    reason = problem.strip().splitlines()[-1] if problem.strip() else "no reason given"
    return UserError(f"no vocabulary can be learnt from the training text ({reason}){given}")


def write_tokenizer_json(directory: Path, keep_marks: bool = False) -> None:
    """Convert ``spiece.model`` to ``tokenizer.json`` beside it, so that both give the same ids.

    A ``tokenizer_config.json`` beside it says whether texts are lower-cased and whether marks are kept. Marks are kept
    too if the vocabulary was learnt from texts with marks (``keep_marks``), or holds a letter with a mark.
    """
    import sentencepiece

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "spiece.model"))
    except (RuntimeError, OSError):
        raise UserError("spiece.model is not a SentencePiece model, or is damaged; copy it again") from None
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    rust = RustTokenizer(models.Unigram(vocabulary, unk_id=pieces.unk_id(), byte_fallback=False))
    given = read_settings(directory)
    keep_marks = keep_marks or given.keep_accents
    keep_marks = keep_marks or any(_published_form(False).normalize_str(piece) != piece for piece, _ in vocabulary)
    kept, published = _kept_form(given.lower_case), _published_form(given.lower_case, _charsmap(pieces))
    rust.normalizer = kept if keep_marks else published
    rust.pre_tokenizer = words_with_a_space()
    rust.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    ids = {name: rust.token_to_id(name) for name in ("<sep>", "<cls>")}
    if missing := [name for name, number in ids.items() if number is None]:
        raise UserError(f"tokenizer '{directory}' has no {missing[0]}; use one made for XLNet")
    rust.post_processor = processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2",
        pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
        special_tokens=list(ids.items()),
    )
    rust.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ("<unk>", *SPECIALS)])
    rust.save(str(directory / "tokenizer.json"))


def lower(rust: RustTokenizer) -> None:
    """Add lower-casing to the tokenizer, before sentencepiece's replacements, as ``XLNetTokenizer`` does."""
    given = rust.normalizer
    steps = [given[i] for i in range(len(given))] if isinstance(given, normalizers.Sequence) else [given]
    steps = [step for step in steps if step is not None]
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        place = len(steps) - isinstance(steps[-1], normalizers.Precompiled) if steps else 0
        rust.normalizer = normalizers.Sequence([*steps[:place], normalizers.Lowercase(), *steps[place:]])


def built_by_xlnets_class(rust: RustTokenizer) -> bool | None:
    """Find the setting with which ``transformers.XLNetTokenizer``, which reads no normaliser, gives the same ids.

    Returns:
        Its ``do_lower_case``. None if no setting gives these ids, so that the file must be used as it is.
    """
    parts = json.loads(rust.to_str())
    model = parts["model"]
    if model.get("type") != "Unigram" or model["unk_id"] != 0 or model.get("byte_fallback"):
        return None
    steps = normalizer_steps(parts["normalizer"])
    steps = [step for step in steps if step["type"] != "Precompiled"]  # the class keeps that one
    built = RustTokenizer(models.Unigram([("<unk>", 0.0)], unk_id=0))
    built.pre_tokenizer = words_with_a_space()
    for lower in (False, True):
        built.normalizer = _published_form(lower)
        same = json.loads(built.to_str())
        if (steps, parts["pre_tokenizer"]) == (normalizer_steps(same["normalizer"]), same["pre_tokenizer"]):
            return lower
    return None


def normalizer_steps(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Flatten a normaliser, as a file holds it, into a list of its steps."""
    if normalizer is None:
        return []
    if normalizer["type"] != "Sequence":
        return [normalizer]
    return [step for part in normalizer["normalizers"] for step in normalizer_steps(part)]


def _published_form(lower: bool, charsmap: bytes = b"") -> normalizers.Normalizer:
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD()]
    steps += [normalizers.StripAccents(), *([normalizers.Lowercase()] if lower else [])]
    return normalizers.Sequence([*steps, *([normalizers.Precompiled(charsmap)] if charsmap else [])])


def _kept_form(lower: bool) -> normalizers.Normalizer:
    small = [normalizers.Lowercase(), normalizers.NFKC()] if lower else []
    return normalizers.Sequence([normalizers.Replace(Regex(INVISIBLE), " "), normalizers.NFKC(), *small])


def _charsmap(pieces: Any) -> bytes:
    """Return sentencepiece's table of replacements: field 2 of field 3 of the model, which is a protocol buffer."""
    return first_bytes(first_bytes(pieces.serialized_model_proto(), 3), 2)


def words_with_a_space() -> pre_tokenizers.PreTokenizer:
    """Return XLNet's way to split a text: at white space, which becomes a sign at each word's beginning."""
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
