"""A model behind HTTP: Vertex AI's contract for prediction containers, and KServe's first protocol."""

from xlnet.serving.server import serve

__all__ = ["serve"]
