"""Reads ``tokenizer_config.json``: what a model's directory says about its tokenizer beside the vocabulary."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet.errors import UserError

UNLIMITED = 10**6  # transformers writes 1e30 for "no limit"


@dataclass(frozen=True)
class TokenizerSettings:
    """How a directory's tokenizer is used."""

    lower_case: bool = False  # texts are put into lower case first
    keep_accents: bool = False  # letters keep their marks
    max_length: int | None = None  # tokens that a row is cut to; None: the directory names no limit
    segments: bool = True  # the model is given segment ids, which tell a text, its pair and ``<cls>`` apart


def read_settings(directory: Path) -> TokenizerSettings:
    """Return the settings of a directory in Hugging Face's layout, with defaults for what it does not set.

    Raises:
        UserError: a file is there and cannot be read.
    """
    given = _read(directory / "tokenizer_config.json")
    limit = given.get("model_max_length")
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 3 < limit < UNLIMITED:
        truncation = _read(directory / "tokenizer.json").get("truncation") if limit is None else None
        limit = truncation.get("max_length") if isinstance(truncation, dict) else None
    names = given.get("model_input_names")
    if isinstance(names, list):
        segments = "token_type_ids" in names
    else:  # the tokenizer of transformers 5 makes none unless it is told to; earlier ones always do
        version = str(_read(directory / "config.json").get("transformers_version") or "")
        major = version.partition(".")[0]
        segments = not (major.isdecimal() and int(major) >= 5)
    lower_case, keep_accents = (given.get(name) is True for name in ("do_lower_case", "keep_accents"))
    return TokenizerSettings(lower_case, keep_accents, None if limit is None else int(limit), segments)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}
