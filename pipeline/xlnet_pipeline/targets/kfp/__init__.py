"""Runs on Kubeflow Pipelines: the target, its HTTP API, its schedules."""
