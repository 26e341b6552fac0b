"""Open, find and read image files."""
