"""The private step of a client and its state between messages."""
