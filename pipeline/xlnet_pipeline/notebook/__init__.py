"""The Python API: the commands as functions, whose results a notebook shows as tables."""
