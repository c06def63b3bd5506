"""Declares the arguments that ``python -m xlnet`` and ``xlnet-pipeline`` share. Imports nothing heavy."""

import argparse
import os

MODEL = "directory, gs:// URI, models:/NAME/VERSION, or registered NAME, NAME:VERSION, NAME@ALIAS"


def add_source(parser: argparse.ArgumentParser) -> None:
    """Declare the input arguments of ``predict``."""
    text = "a text, a file of the kind the model saw, or lines from -"
    parser.add_argument("source", metavar="TEXT|FILE|-", help=text)
    parser.add_argument("--text", action="store_true", help="it is a text, though it looks like the path of a file")
    parser.add_argument("--pair", metavar="TEXT", help="the second text, for a model of sentence pairs")
    text = "csv, tsv, jsonl, parquet, xlsx or text; default: what the file's ending says, and a text a line from -"
    parser.add_argument("--format", metavar="FORMAT", help=text)


def add_serving(parser: argparse.ArgumentParser) -> None:
    """Declare the model and address arguments of ``serve``."""
    text = f"{MODEL}; default: $AIP_STORAGE_URI"
    parser.add_argument("model", metavar="MODEL", nargs="?", default=os.environ.get("AIP_STORAGE_URI"), help=text)
    host = os.environ.get("XLNET_SERVE_HOST") or "127.0.0.1"
    text = "address to listen on, 0.0.0.0 for all; default: $XLNET_SERVE_HOST, else 127.0.0.1: this machine alone"
    parser.add_argument("--host", default=host, metavar="ADDRESS", help=text)
    port = os.environ.get("AIP_HTTP_PORT") or "8080"
    parser.add_argument("--port", type=int, default=port, metavar="NUMBER", help="default: $AIP_HTTP_PORT, else 8080")
