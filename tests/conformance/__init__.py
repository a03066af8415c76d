"""A stand-in for a Kubeflow Pipelines server: runs a compiled package task by task."""
