"""Figures of a run for TensorBoard and MLflow."""
