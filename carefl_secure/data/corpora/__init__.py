"""One file a corpus: from its published layout to records."""
