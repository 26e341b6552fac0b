"""Open, find and read image files."""

from pathlib import Path

SAMPLE = Path(__file__).parents[1] / "demo" / "static" / "cat.jpg"  # a photo to try a model on; the wheel has it
