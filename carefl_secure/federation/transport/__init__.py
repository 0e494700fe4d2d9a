"""Messages on Flower's wire, and an in-process grid."""
