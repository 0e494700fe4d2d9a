"""The vision-language model: loading, the adapter, label scores, and the embedded weights."""
