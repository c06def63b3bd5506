"""The Python API: the command line's verbs as functions, and their results as objects that a notebook shows."""
