"""Generated text into the README, between a pair of markers."""

from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def shown(name: str) -> str:
    """Return what stands between the README's markers `<!-- name -->` and `<!-- /name -->`."""
    text = README.read_text(encoding="utf-8")
    return text.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]


def write_into_readme(name: str, text: str) -> None:
    """Put a text between the markers in place of what stands there."""
    before, marker, rest = README.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    if not marker:
        raise SystemExit(f"{README} has no marker <!-- {name} -->.")
    after = rest[rest.index(f"<!-- /{name} -->") :]
    README.write_text(before + marker + text + "\n" + after, encoding="utf-8")
