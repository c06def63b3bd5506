"""Reads input files and turns their rows into batches of token ids."""
