"""What a finished run leaves to be used: the adapter's folder, its card, predictions, a merged copy."""
