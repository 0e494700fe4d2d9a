"""What events cost, and what a budget buys."""
