"""Declares the arguments that ``python -m xlnet`` and ``xlnet-pipeline`` share. Imports nothing heavy."""

import argparse
import os

PRECISIONS = ("auto", "float32", "bfloat16", "int8")  # number types of matrix products, or of their weights
MODEL = "directory, gs:// URI, models:/NAME/VERSION, or registered NAME, NAME:VERSION, NAME@ALIAS"


def device(word: str) -> str:
    """Return the kind of device that a word on a command line names: ``gpu`` means ``cuda``."""
    return "cuda" if word == "gpu" else word


def add_source(parser: argparse.ArgumentParser) -> None:
    """Declare the input arguments of ``predict``."""
    text = "a text; a file in any format of training data; or - for one text per line of standard input"
    parser.add_argument("source", metavar="TEXT|FILE|-", help=text)
    parser.add_argument("--text", action="store_true", help="treat the argument as a text even if it looks like a path")
    parser.add_argument("--pair", metavar="TEXT", help="the second text, for a model of sentence pairs")
    text = "csv, tsv, jsonl, parquet, xlsx or text; default: by the file's extension; for -: one text per line"
    parser.add_argument("--format", metavar="FORMAT", help=text)
    add_precision(parser)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Declare the number type of matrix products, for ``predict`` and ``serve``."""
    text = "number type of matrix products; bfloat16 and int8 are faster on processors that have them; default: float32"
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help=text)


def add_serving(parser: argparse.ArgumentParser) -> None:
    """Declare the model and address arguments of ``serve``."""
    text = f"{MODEL}; default: $AIP_STORAGE_URI"
    parser.add_argument("model", metavar="MODEL", nargs="?", default=os.environ.get("AIP_STORAGE_URI"), help=text)
    host = os.environ.get("XLNET_SERVE_HOST") or "127.0.0.1"
    text = "address to listen on, 0.0.0.0 for all; default: $XLNET_SERVE_HOST, else 127.0.0.1 (this machine only)"
    parser.add_argument("--host", default=host, metavar="ADDRESS", help=text)
    port = os.environ.get("AIP_HTTP_PORT") or "8080"
    parser.add_argument("--port", type=int, default=port, metavar="NUMBER", help="default: $AIP_HTTP_PORT, else 8080")
    add_precision(parser)


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``generate`` after the model."""
    parser.add_argument("prompt", metavar="PROMPT|-", help="the text to continue; -: standard input, as one text")
    parser.add_argument("--tokens", metavar="N", help="maximum new tokens (default: 100), or the tokens of a gap")
    text = "choose tokens at random; below 1, likely tokens become likelier; 0: always the likeliest (default)"
    parser.add_argument("--temperature", metavar="T", help=text)
    parser.add_argument("--top-k", metavar="K", help="choose at random among the K likeliest tokens")
    text = "choose at random among the likeliest tokens that together have this probability"
    parser.add_argument("--top-p", metavar="P", help=text)
    parser.add_argument("--seed", metavar="N", help="random seed; default: a new one each time, which is printed")
    parser.add_argument("--infill", action="store_true", help="fill the gap at ___ in the prompt, seeing both sides")
    parser.add_argument("--marker", metavar="TEXT", help="marks the gap; default: ___")
    text = "the order in which the gap's tokens are filled, such as 2,0,1; default: from left to right"
    parser.add_argument("--order", metavar="N,N,…", help=text)
    parser.add_argument("--memory", metavar="N", help="how many of the last tokens a new token sees (default: 2048)")
    parser.add_argument("--past-end", action="store_true", help="go on after the model has ended the text")
    text = "type in which new tokens read the weights; bfloat16 and int8 are faster where reading them takes the time"
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help=f"{text}; default: float32")
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each token, and one for the whole text"
    )
