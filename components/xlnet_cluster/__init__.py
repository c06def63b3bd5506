"""Training on several machines of a Kubernetes cluster, or on spot machines: a JobSet, and the pod that watches it."""
