"""Figures of a run for TensorBoard, MLflow and Weights & Biases."""
