"""From bytes to images, rows and frames."""
