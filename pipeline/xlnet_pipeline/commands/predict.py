"""``xlnet-pipeline predict``: a model's answers as JSON Lines."""

import argparse
import json
import os
from pathlib import Path

from xlnet.data import objects
from xlnet.errors import UserError
from xlnet_pipeline.commands.models import add_uri, find
from xlnet_pipeline.commands.parser import Subparsers, command


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "predict",
        predict,
        summary="label texts with a model, as JSON Lines",
        details="Each line of output holds the label and the probability of every class in full precision, or the\n"
        "number of a regression.",
        examples=[
            "xlnet-pipeline predict uci-sentences 'what a lovely film'",
            "xlnet-pipeline predict uci-sentences:1 reviews.csv",
            "xlnet-pipeline predict ./model - < lines.txt",
        ],
    )
    parser.add_argument("model", metavar="MODEL", help="a directory, or a registered NAME, NAME:VERSION, NAME@ALIAS")
    parser.add_argument(
        "source", metavar="TEXT|FILE|-", help="a text, a file of the kind the model saw, or lines from -"
    )
    add_uri(parser)
    parser.add_argument("--pair", metavar="TEXT", help="the second text, for a model of sentence pairs")


def predict(options: argparse.Namespace) -> None:
    """Print one line of JSON for each text."""
    folder = model_directory(options)
    from xlnet.evaluation import predict as predictor

    for prediction in predictor.predict(folder, predictor.texts_from(options.source, folder, pair=options.pair)):
        print(json.dumps(prediction, ensure_ascii=False))


def model_directory(options: argparse.Namespace) -> str:
    """The directory of the model that was named.

    Raises:
        UserError: there is no such directory, nor such a registered model.
    """
    if Path(options.model).is_dir():
        return str(options.model)
    if options.model.startswith(objects.GCS):
        return str(objects.local_directory(options.model))
    if os.sep in options.model:
        raise UserError(f"there is no model directory '{options.model}'; name one, or a registered model")
    place = find(options).model_uri
    directory = objects.local_directory(place)
    if not directory.is_dir():
        raise UserError(f"model '{options.model}' was kept in '{place}', which is gone; run its recipe again")
    return str(directory)
