"""Evaluation: metrics, predictions, the comparison with the champion, and the report."""
