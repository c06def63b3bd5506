"""Estimates a run's time, memory and cost before anything is spent, and checks what would make it fail."""
