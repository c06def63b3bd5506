"""XLNet on your own text: data, model, training, evaluation and registry, without a pipeline engine."""

__version__ = "0.1.0"
