"""Trains on several machines or on spot machines of a Kubernetes cluster, in a JobSet that a launcher pod watches."""
