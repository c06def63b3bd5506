"""Checks of the data. They use the preprocess step's own functions to find what it would reject."""

import tempfile
from itertools import islice
from pathlib import Path

from xlnet.data import corpus as corpora
from xlnet.data import objects, unknown
from xlnet.data import survey as surveys
from xlnet.data.readers import Reject, unused_settings
from xlnet.data.remarks import share
from xlnet.data.snapshot import CORPUS
from xlnet.data.vocabulary import make_tokenizer, rows_with_a_split
from xlnet.evaluation.comparison import primary_metric, refuse_selection
from xlnet.model import pretrained
from xlnet.recipe import OWN_ROWS
from xlnet.recipe.checks import refuse_unknown_classes, segment_length
from xlnet_pipeline.planning.planned_run import BEFORE_A_RUN, FIRST_ROWS, PlannedRun

TRUNCATED = 0.2  # share of truncated texts above which to warn
TOKENISED, TOKENISED_BEFORE_A_RUN = 20_000, 2_000  # rows to tokenise


def columns(given: PlannedRun) -> str | None:
    """Read every row as the preprocess step will, or only the first rows of a large input."""
    if given.survey is not None:  # the survey has raised what the step would raise
        return None
    for source, rows in given.first:
        rejects = [row for row in rows if isinstance(row, Reject)]
        if len(rejects) > max(1, given.recipe.data.max_rejects * len(rows)):
            where = f"{len(rejects)} of the first {len(rows)} rows of '{source.uri}'"
            return f"{where} cannot be used (line {rejects[0].line}: {rejects[0].reason})"
    return None


def corpus_text(given: PlannedRun) -> str | None:
    """A corpus must be text that can be read, and more than one segment of it."""
    recipe, least = given.recipe, segment_length(given.recipe)
    if recipe.data.task == "pretrain":
        return _short_split(given)
    if not recipe.pretrains:
        return None
    data, characters, whole = corpora.reading(recipe), 0, OWN_ROWS not in recipe.pretraining.corpus
    for source in [file.source for file in given.snapshot.files if file.split == CORPUS]:
        rows = list(corpora.first_documents(source, data, FIRST_ROWS))
        rejects = [row for row in rows if isinstance(row, Reject)]
        if len(rejects) > max(1, data.max_rejects * len(rows)):
            where = f"{len(rejects)} of the first {len(rows)} documents of '{source.uri}'"
            return f"{where} cannot be used (line {rejects[0].line}: {rejects[0].reason})"
        whole = whole and len(rows) < FIRST_ROWS
        characters += sum(len(row.text) + 1 for row in rows if not isinstance(row, Reject))
    if whole and characters < least:
        return f"pretraining.corpus has {characters:,} characters, fewer than the {least} tokens of one segment"
    return None


def _short_split(given: PlannedRun) -> str | None:
    """Find a split of a corpus that has fewer characters, and so fewer tokens, than a segment."""
    if given.survey is None:
        return None
    survey, splits, _ = given.survey
    characters = dict.fromkeys((surveys.TRAIN, surveys.VALIDATION), 0)
    for row, _, split in rows_with_a_split(survey, splits):
        if split in characters:
            characters[split] += len(row.text) + 1
    for name, count in zip(("train", "validation"), characters.values(), strict=True):
        if count < given.recipe.data.max_length:
            least = f"fewer than the data.max_length = {given.recipe.data.max_length} tokens of one segment"
            return f"the {name} split of the corpus has {count:,} characters, {least}"
    return None


def labels(given: PlannedRun) -> str | None:
    """The label column must hold classes, or numbers if the task is regression."""
    rows, data = given.rows, given.recipe.data
    names = {row.label for row in rows}
    if data.task != "classification" or given.survey is not None:
        return None  # the reader checks numbers, a corpus has no labels, and the survey checks small inputs
    if len(rows) > 20 and len(names) > surveys.MANY_CLASSES * len(rows):
        return f"data.label = {data.label!r} has {len(names)} different values in the first {len(rows)} rows"
    if len(names) == 1 and not _has_unread_rows(given):
        return f"data.label = {data.label!r} is '{next(iter(names))}' in all of the first {len(rows)} rows"
    return None


def lost_rows(given: PlannedRun) -> list[str]:
    """Warn about input that does not stop the run but may be a mistake."""
    found = list(given.snapshot.remarks)
    if given.survey is None:
        return found + unused_settings((source for source, _ in given.first), given.recipe.data)
    survey, splits, warnings = given.survey
    found += warnings
    total = survey.rejects.total()
    if total:
        ((reason, count),) = survey.rejects.most_common(1)
        rows = share(total, total + int((splits >= 0).sum()))
        found.append(f"{rows} rows would be rejected, most often: {reason} ({count:,}); {survey.first_rejects[0]}")
    repeated = surveys.duplicates(survey, splits)
    for name, rows_of in (("test", surveys.TEST), ("validation", surveys.VALIDATION)):
        if both := repeated[f"train_{name}"]:
            found.append(f"{share(both, int((splits == rows_of).sum()))} {name} rows have a text that is also in train")
    return found


def vocabulary(given: PlannedRun) -> str | None:
    """The tokenizer must exist, or be learnt from the text, and must know the text's characters."""
    before_a_run = given.whole <= BEFORE_A_RUN
    data = given.recipe.data
    if given.survey is None or (before_a_run and data.tokenizer == "train"):
        return None  # the preprocess step learns a vocabulary that fits
    survey, splits, _ = given.survey
    most = TOKENISED_BEFORE_A_RUN if before_a_run else TOKENISED
    with tempfile.TemporaryDirectory(prefix="xlnet-check-") as folder:
        tokenizer = make_tokenizer(Path(folder), survey, splits)
        some = islice(rows_with_a_split(survey, splits), 0, None, max(1, len(splits) // most))
        texts = [text for row, _, _ in some for text in (row.text, row.text_pair) if text]
        return unknown.remark({"the input": unknown.of_texts(texts, tokenizer)}, data) or None


def weights(given: PlannedRun) -> str | None:
    """Pretrained weights must exist and fit the tokenizer."""
    name = given.recipe.model.pretrained
    if not name or given.survey is None or objects.is_remote(name):
        return None
    if not Path(name).is_dir():
        if not given.remote:  # the train step fetches the rest, perhaps on a machine that reaches more than this one
            pretrained.find(name)
        return None
    survey, splits, _ = given.survey
    task = given.recipe.data.task
    with tempfile.TemporaryDirectory(prefix="xlnet-check-") as folder:
        tokenizer = make_tokenizer(Path(folder), survey, splits)
        if given.whole <= BEFORE_A_RUN:  # the train step reads the weights themselves
            pretrained.check(name, tokenizer.directory)
            return None
        from xlnet.model.weights import load_pretrained  # late: torch takes a second to import

        load_pretrained(name, tokenizer.directory, task, survey.classes if task == "classification" else [])
    return None


def class_weights(given: PlannedRun) -> str | None:
    """Weights must be those of classes in the data; a large input is checked by the train step."""
    weights = given.recipe.training.class_weights
    if weights != "none" and given.recipe.data.task == "regression":
        return "training.class_weights needs classes, and data.task is 'regression'; leave one of the two out"
    if isinstance(weights, dict) and given.survey is not None:
        refuse_unknown_classes(weights, given.survey[0].classes)
    return None


def metric(given: PlannedRun) -> None:
    """The metric that decides must exist for the task."""
    primary_metric(given.recipe.evaluation, given.recipe.data.task)
    refuse_selection(given.recipe.training.select_by, given.recipe.data.task)


def _has_unread_rows(given: PlannedRun) -> bool:
    """Return whether some rows were not read; they may belong to other classes."""
    return any(len(rows) == FIRST_ROWS for _, rows in given.first) or len(given.sources) > len(given.first)


def truncation(given: PlannedRun) -> str | None:
    """Warn if many texts are truncated."""
    if given.recipe.data.task == "pretrain":
        return None  # documents of any length become segments
    lengths, _ = given.lengths
    limit = given.recipe.data.max_length
    cut = sum(length >= limit for length in lengths) / max(1, len(lengths))
    return (
        f"{cut:.0%} of the first texts reach data.max_length = {limit} tokens and are cut" if cut > TRUNCATED else None
    )
