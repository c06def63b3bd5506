"""Lineage: what an artifact was made of, as a graph with facts, and as one small page."""
