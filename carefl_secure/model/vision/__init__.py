"""The frozen vision side: the features of images, and the store that keeps them on disk."""
