"""Finds a pretrained model, and checks from its files' headers that it fits, without torch and without its weights."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from xlnet.data.tokenizer import TOKENIZER_FILES, Tokenizer, has_tokenizer, load_tokenizer
from xlnet.errors import CorruptArtifact, UserError, warn
from xlnet.model import config as configs
from xlnet.model import released, tensorflow_files
from xlnet.model.config import XLNetConfig

SAFE, PICKLED, INDEX = "model.safetensors", "pytorch_model.bin", ".index.json"
RELEASED = "xlnet_model.ckpt.index with its data"
BODY = "transformer."  # prefix of the names of all weights below the head
Shapes = Mapping[str, tuple[int, ...]]


def check(name: str, tokenizer: str | Path) -> None:
    """Check a pretrained model in a directory without loading it.

    The check does not find damaged weights, weights that are not finite, or faults in a ``pytorch_model.bin``.

    Args:
        name: a directory in Hugging Face's layout.
        tokenizer: directory of the dataset's tokenizer.

    Raises:
        UserError: it is not XLNet, has another vocabulary, or lacks a weight of the right shape.
        CorruptArtifact: the header of a file is damaged.
    """
    config = configs.read(Path(name, "config.json"))
    refuse_other_tokens(name, Path(name), load_tokenizer(tokenizer), config.vocab_size, say=False)
    shapes = _shapes(Path(name))
    if shapes is not None:
        refuse_misfit(name, shapes, config)


def refuse_misfit(name: str, shapes: Shapes, config: XLNetConfig) -> None:
    """Raise UserError if a weight is missing or does not have the shape that the config gives.

    Args:
        name: the model, as the user named it.
        shapes: each weight's name in Hugging Face's files → its shape; a bare ``XLNetModel``'s have no prefix.
        config: the model's own config.
    """
    prefix = "" if any(one.startswith(BODY) for one in shapes) else BODY
    there = {prefix + one: shape for one, shape in shapes.items()}
    wanted = expected(config)
    if lost := sorted(one for one, shape in wanted.items() if there.get(one) != shape):
        first = lost[0]
        how = f"of shape {list(there[first])} instead of {list(wanted[first])}" if first in there else "missing"
        others = f", {len(lost) - 1} more do not fit" if lost[1:] else ""
        raise UserError(f"model.pretrained '{name}' does not fit its config.json: {first} is {how}{others}")


def expected(config: XLNetConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape that each weight below the head has in Hugging Face's files."""
    width, heads, head, inner = config.d_model, config.n_head, config.d_head, config.d_inner
    layer: dict[str, tuple[int, ...]] = {
        **{f"rel_attn.{name}": (width, heads, head) for name in "qkvor"},
        **{f"rel_attn.r_{name}_bias": (heads, head) for name in "wrs"},
        "rel_attn.seg_embed": (2, heads, head),
        **{f"{block}.layer_norm.{name}": (width,) for block in ("rel_attn", "ff") for name in ("weight", "bias")},
        "ff.layer_1.weight": (inner, width),
        "ff.layer_1.bias": (inner,),
        "ff.layer_2.weight": (width, inner),
        "ff.layer_2.bias": (width,),
    }
    layers = itertools.product(range(config.n_layer), layer.items())
    return {
        f"{BODY}word_embedding.weight": (config.vocab_size, width),
        f"{BODY}mask_emb": (1, 1, width),
        **{f"{BODY}layer.{number}.{name}": shape for number, (name, shape) in layers},
    }


def _shapes(directory: Path) -> Shapes | None:
    """Read the shapes of a model's weights from headers or an index; None if its files have neither."""
    if (whole := directory / SAFE).is_file():
        files = [whole]
    elif (index := directory / f"{SAFE}{INDEX}").is_file():
        files = [directory / name for name in sorted(set(shards(index).values()))]
    elif checkpoint := tensorflow_files.find(directory):
        return released.shapes(checkpoint)
    else:
        return None
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with path.open("rb"), safe_open(str(path), framework="np") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CorruptArtifact(f"the weights in '{path}' cannot be read: {error}") from None
    return found


def shards(index: Path) -> dict[str, str]:
    """Read an index of weights in several files: name of each weight → name of its file, which lies beside the index.

    Raises:
        CorruptArtifact: the index is damaged.
        UserError: it names a file that is not beside the index.
    """
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorruptArtifact(f"'{index}' cannot be read: it lists no weights ({why})") from None
    for name in files:
        if not isinstance(name, str) or name != Path(name).name:
            raise UserError(f"'{index}' names the file {name!r}; allowed: files of its own directory")
    return places


def refuse_other_tokens(name: str, directory: Path, ours: Tokenizer, vocab_size: int, say: bool = True) -> None:
    """Raise UserError if a token id stands for different pieces in the dataset and in the pretrained model.

    Args:
        name: the model, as the user named it.
        directory: the model's directory.
        ours: the dataset's tokenizer.
        vocab_size: number of tokens that the model knows.
        say: whether to warn if the model comes without a tokenizer.
    """
    remedy = "set data.tokenizer to the directory of the pretrained model"
    if vocab_size != ours.vocab_size:
        raise UserError(
            f"model.pretrained '{name}' has {vocab_size} tokens, the dataset's tokenizer {ours.vocab_size}; {remedy}"
        )
    trained_with = configs.tokenizer_digest(directory)
    if not has_tokenizer(directory):
        if trained_with not in ("", ours.digest):
            raise UserError(
                f"model.pretrained '{name}' was trained with another tokenizer than the dataset's; {remedy}"
            )
        if say and not trained_with:
            warn(f"model.pretrained '{name}' comes without a tokenizer: its tokens are taken to be the dataset's")
        return
    if difference := ours.difference(load_tokenizer(directory)):
        raise UserError(f"model.pretrained '{name}' has another tokenizer than the dataset: {difference}; {remedy}")
    if trained_with not in ("", ours.digest):
        raise UserError(
            f"model.pretrained '{name}' has weights that were trained with another tokenizer; take both from one model"
        )


def find(name: str) -> Path:
    """Return the path of a pretrained model's ``config.json``, in its directory or downloaded from the hub.

    Raises:
        UserError: neither the directory nor the hub has it.
    """
    if Path(name).is_dir():
        return Path(name, "config.json")
    from transformers.utils.hub import cached_file

    try:
        return Path(str(cached_file(name, "config.json")))
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from None


def _not_found(name: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"model.pretrained is '{name}': no such directory, and the hub did not give it ({reason}); "
        "give a directory with config.json and model.safetensors"
    )


def fetch(name: str) -> Path:
    """Return a pretrained model's directory: ``name`` itself, or a download from the hub."""
    config = find(name)
    if Path(name).is_dir():
        return Path(name)
    from transformers.utils.hub import cached_file

    try:
        weights = cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
        weights = weights or cached_file(name, "pytorch_model.bin")
        for file in TOKENIZER_FILES:
            cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from None
    if config.parent != Path(str(weights)).parent:
        raise CorruptArtifact(f"the hub's cache holds '{name}' in two revisions; delete it and try again")
    return config.parent
