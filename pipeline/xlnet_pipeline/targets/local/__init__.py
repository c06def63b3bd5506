"""Runs on this machine: the target, its cache, its schedules."""
