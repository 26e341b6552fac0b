"""Each weights tag has a card, it is what its records say, and its example runs."""

import re
import subprocess

import pytest

from sqzoo.weights import read_manifest
from tests.support import ROOT
from tests.support.fork import python

COMPLETE = [tag for tag, entry in read_manifest().items() if entry.holds == "complete"]


def test_cards_are_what_the_records_say() -> None:
    done = subprocess.run([python(), "tools/model_cards.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {f.stem for f in (ROOT / "MODEL_CARDS").glob("*.md")} == read_manifest().keys()


@pytest.mark.parametrize("tag", COMPLETE)
def test_example_runs(tag: str) -> None:
    card = (ROOT / "MODEL_CARDS" / f"{tag}.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run([python(), "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'cat'" in done.stdout
