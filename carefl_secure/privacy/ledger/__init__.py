"""What was spent: an append-only file, its entries and its statement."""
