"""Benchmarks: each answers one question and writes its record below `results`. See README.md beside this file."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
