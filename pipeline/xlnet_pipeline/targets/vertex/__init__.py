"""Runs on Vertex AI Pipelines: the target and its schedules."""
