"""What every protocol shares: framing, keys, sharing, packing."""
