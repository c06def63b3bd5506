"""Compile, run, watch and trace the xlnet pipeline."""
