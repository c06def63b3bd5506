"""Lineage: shows where an artifact came from, as a graph, a tree in the terminal, JSON, and one self-contained page."""
