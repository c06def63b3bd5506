"""Serves a model over HTTP, as Vertex AI's prediction containers and KServe's V1 protocol require."""

from xlnet.serving.server import serve

__all__ = ["serve"]
