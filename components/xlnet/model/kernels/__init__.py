"""Implementations of one mathematics: readable, portable, and fast on one kind of device."""
