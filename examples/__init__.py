"""Small apps to copy from; each runs by itself."""
