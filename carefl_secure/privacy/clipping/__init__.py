"""The sum of clipped per-record gradients."""
