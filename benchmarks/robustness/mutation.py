"""Mutation: do the tests notice a changed line of what checks, builds and registers networks?

    nice -n 10 python benchmarks/robustness/mutation.py [--mutants 200] [--seed 0]

Draws mutants of sqzoo/weights, sqzoo/models and sqzoo/registry.py (cosmic-ray's operators), each of another place in
the source, and runs the tests of the module on each in a clone of this checkout, then, where these pass, those of what
uses it. Those that no test notices are listed: some change nothing that anyone can see, the others want a test. Needs
`pip install cosmic-ray`. The same command goes on where it was stopped, at the same commit.
"""

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, ROOT, run_main
from benchmarks.record import write_record
from sqzoo.environment import environment
from sqzoo.errors import DataError
from sqzoo.files import read_json, write_text

RESULT = RESULTS / "robustness" / "mutation.json"
PARTIAL = RESULT.with_name("mutation.partial.json")
TARGETS = ("sqzoo/weights", "sqzoo/models", "sqzoo/registry.py")
NEAR = {"weights": ["tests/weights"], "models": ["tests/models"], "registry.py": ["tests/test_registry.py"]}
ALL = [
    "tests/weights",
    "tests/models",
    "tests/test_registry.py",
    "tests/test_hub.py",
    "tests/test_hostile.py",
    "tests/test_predict.py",
    "tests/test_cache.py",
    "tests/test_hubconf.py",
]
LIMIT = 1800  # seconds for the tests of a mutant; one that hangs is noticed, too
SKIPPED = (
    "BitOr_",
    "BitAnd_",
    "BitXor_",
    "RemoveDecorator",
    "Variable",
)  # of annotations, timm's registry, with arguments


def mutants(count: int, seed: int) -> list[tuple[str, str, int, int]]:
    """Draw mutants: (file, operator, occurrence, line), no two of one place; strings and annotations are left alone."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    places: dict[tuple[str, Any], list[tuple[str, str, int, int]]] = {}
    files = [f for t in TARGETS for f in ([ROOT / t] if t.endswith(".py") else sorted((ROOT / t).glob("*.py")))]
    operators = [name for name in sorted(operator_names()) if not any(part in name for part in SKIPPED)]
    for file in files:
        name, nodes = file.relative_to(ROOT).as_posix(), list(ast_nodes(get_ast(file.read_text(encoding="utf-8"))))
        for operator in operators:
            positions = [p for node in nodes for p in get_operator(operator)().mutation_positions(node)]
            for number, (start, _) in enumerate(positions):
                places.setdefault((name, start), []).append((name, operator, number, start[0]))
    draw = random.Random(seed)
    chosen = [draw.choice(places[place]) for place in sorted(places)]
    draw.shuffle(chosen)
    return chosen[:count]


def mutated(source: str, operator: str, occurrence: int) -> str:
    """Return a source with one occurrence of an operator applied."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    return str(mutate_code(source, get_operator(operator)(), occurrence) or source)


def differs(before: str, after: str) -> bool:
    """Return whether a mutated source is another program, not the same one, and none that Python cannot parse."""
    try:
        return ast.dump(ast.parse(before)) != ast.dump(ast.parse(after))
    except SyntaxError:
        return False


def noticed(folder: Path, tests: list[str]) -> str:
    """Return how the tests fail, crash or hang in a checkout; "" where they pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    surroundings = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"they take longer than {LIMIT} seconds"
    return f"exit status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}" if done.returncode else ""


def render(record: dict[str, Any]) -> str:
    """Return a sentence on the score as Markdown; `record` is what results/ holds, or {}."""
    if not record:
        return "Not measured yet: `python benchmarks/robustness/mutation.py`."
    where = ", ".join(f"`{target}`" for target in TARGETS)
    return (
        f"The tests notice {record['noticed']} of {record['mutants']} mutants of {where}, each one operator, number or "
        "condition changed, drawn at random; `benchmarks/results/robustness/mutation.json` lists the others."
    )


def main() -> None:
    """Run what is not known yet, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    facts = environment()
    key = f"{facts['commit']} {arguments.seed}"
    known: dict[str, Any] = read_json(PARTIAL) if PARTIAL.is_file() else {}
    results: dict[str, Any] = known.get("results", {}) if known.get("key") == key else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "main"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        if how := noticed(folder, ALL):
            raise DataError(f"The tests fail without a mutant; make them pass first: {how}")
        for name, operator, occurrence, line in mutants(arguments.mutants, arguments.seed):
            label = f"{name}:{line} {operator.removeprefix('core/')} {occurrence}"
            if label in results:
                continue
            file = folder / name
            before = file.read_text(encoding="utf-8")
            after = mutated(before, operator, occurrence)
            if not differs(before, after):
                continue
            file.write_text(after, encoding="utf-8")
            near = NEAR[Path(name).parts[1]]
            outcome = "near" if noticed(folder, near) else "far" if noticed(folder, ALL) else None
            file.write_text(before, encoding="utf-8")
            pairs = zip(before.splitlines(), after.splitlines(), strict=False)
            changed = next(([a.strip(), b.strip()] for a, b in pairs if a != b), ["", ""])
            results[label] = {"noticed": outcome, "was": changed[0], "is": changed[1]}
            print(label, outcome or "NOT NOTICED", *changed, sep="\n  ", flush=True)
            write_text(PARTIAL, json.dumps({"key": key, "results": results}))
    total, missed = len(results), [label for label, r in results.items() if r["noticed"] is None]
    print(f"{total - len(missed)} of {total} noticed")
    record = {"environment": facts, "seed": arguments.seed, "mutants": total, "noticed": total - len(missed)}
    write_record(
        RESULT, record | {"missed": {label: [results[label]["was"], results[label]["is"]] for label in missed}}
    )


if __name__ == "__main__":
    run_main(main)
