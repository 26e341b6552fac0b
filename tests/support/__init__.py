"""What several tests share: paths, data makers, assertions, and real servers on loopback."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CAT = ROOT / "examples" / "cat.jpg"
