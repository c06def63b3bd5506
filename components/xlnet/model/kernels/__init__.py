"""Implementations of the same formulas: a readable one, portable ones, and fast ones for one kind of device."""
