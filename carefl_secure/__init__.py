"""Private federated fine-tuning of a small vision-language model."""

__all__ = ["__version__"]

__version__ = "0.1.0"
