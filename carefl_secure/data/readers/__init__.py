"""From bytes to images, rows and frames; what cannot be read raises `DataError`."""
