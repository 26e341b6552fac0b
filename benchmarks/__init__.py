"""Benchmarks: each answers one question and writes its record below `results`. See README.md beside this file."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sqzoo.errors import SqzooError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main function and exit with what it returns, or with an error of sqzoo's in one sentence."""
    try:
        sys.exit(main())
    except SqzooError as e:
        sys.exit(f"{Path(sys.argv[0]).stem}: {e}")
