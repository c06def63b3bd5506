"""Lineage: the graph of everything that an artifact was made from, with facts, and a small page that shows it."""
