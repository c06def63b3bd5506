"""``xlnet-pipeline predict``: print a model's predictions as JSON Lines."""

import argparse
import functools

from xlnet.options import MODEL, add_source
from xlnet_pipeline.commands.models import add_uri, open_registry
from xlnet_pipeline.commands.parser import Subparsers, command


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "predict",
        predict,
        "label texts with a model, as JSON Lines",
        "predict uci-sentences 'what a lovely film'",
        "predict uci-sentences:1 reviews.csv",
        "predict ./model - < lines.txt",
        "predict ./model - --format jsonl < rows.jsonl",
        details="Each line of output holds the label and the probability of every class in full precision, or the\n"
        "number of a regression; for texts of a file also their line and id. A text that cannot be used is answered\n"
        "with an error.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_source(parser)
    add_uri(parser)


def predict(options: argparse.Namespace) -> None:
    """Print one line of JSON for each input text."""
    from xlnet.evaluation import predict as predicting
    from xlnet.evaluation.predictor import Predictor
    from xlnet.evaluation.questions import texts_from
    from xlnet.registry.locate import model_directory

    directory = model_directory(options.model, functools.partial(open_registry, options))
    predictor = Predictor(directory, options.precision)
    texts = texts_from(options.source, predictor, options.pair, options.format, options.text)
    predicting.print_answers(predicting.predict(predictor, texts))
