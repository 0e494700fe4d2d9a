"""Tables over many runs: variants of one configuration under the same seeds, and paired tests."""
