"""What a client computes from its records in a round."""
