"""Thin Kubeflow Pipelines components over the functions of xlnet."""
