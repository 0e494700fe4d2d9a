"""From real vectors to integers and back, with bounds."""
