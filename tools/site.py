"""What the site takes from elsewhere: {{ name }} in a page becomes what the function of that name returns.

Figures and tables come from recorded results and the manifest, commands from the command line itself.
"""

import csv
import json
import re
from typing import Any

import typer
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from benchmarks import RESULTS, ROOT

FIGURES = RESULTS / "paper"
CARDS = ROOT / "MODEL_CARDS"
# Relative to docs/, so that GitHub shows them too; links to other files outside docs/ go to GitHub.
ELSEWHERE = {
    "../MODEL_CARDS/": "cards/",
    "../benchmarks/results/paper/claims.md": "https://github.com/org/sqzoo/blob/main/benchmarks/results/paper/claims.md",
    **{f"../benchmarks/results/{folder}/": "figures/" for folder in ("paper", "size", "speed")},
}
# Modules that are documented, in the order of a reader's steps.
MODULES = (
    *("registry", "predict", "models", "data", "own_images.folder", "own_images.training", "train", "train.recipes"),
    *("evaluation", "report.page", "explain", "uncertainty", "export", "deploy.optimize", "compress.make_tag"),
    *("hub", "cache", "demo", "weights", "errors"),
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the cards, figures and icon, which lie outside the site's folder."""
    for source in (*sorted(CARDS.iterdir()), *sorted(RESULTS.glob("*/*.svg"))):
        name = f"{'cards' if source.parent == CARDS else 'figures'}/{source.name}"
        files.append(File.generated(config, name, abs_src_path=str(source)))
    files.append(File.generated(config, "icon.svg", abs_src_path=str(ROOT / "sqzoo" / "demo" / "static" / "icon.svg")))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the cards into the navigation."""
    assert config.nav is not None
    config.nav.append({"Model cards": [f"cards/{card.name}" for card in sorted(CARDS.glob("*.md"))]})
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in what a page asks for by {{ name }}; links into the repository become links into the site."""
    for folder, name in ELSEWHERE.items():
        markdown = markdown.replace(f"]({folder}", f"]({name}")
    return re.sub(r"^\{\{ (\w+) \}\}$", lambda m: globals()[m[1]](), markdown, flags=re.MULTILINE)


def demo() -> str:
    from benchmarks.speed import page

    return page.render(_results("speed/page"))


def claims() -> str:
    return (FIGURES / "claims.md").read_text(encoding="utf-8").partition("\n")[2]


def figures() -> str:
    titles = yaml.safe_load((ROOT / "benchmarks" / "paper" / "experiments.yaml").read_text(encoding="utf-8"))[
        "experiments"
    ]
    parts = []
    for name, about in titles.items():
        table = FIGURES / f"{name}.csv"
        if not table.is_file():
            continue
        parts.append(f"### {about['title']}\n")
        if (FIGURES / f"{name}.svg").is_file():
            parts.append(f"![{about['title']}](figures/{name}.svg)\n")
        with table.open(encoding="utf-8", newline="") as stream:
            parts.append(_table(list(csv.reader(stream))))
    return "\n".join(parts)


def commands() -> str:
    from sqzoo.cli import app

    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in sorted(group.commands.items()):
        parts.append(f"## sqzoo {name}\n\n{command.help}\n")
        rows = [["argument", "what it is"]]
        for option in command.params:
            help_text = " ".join((getattr(option, "help", None) or "").split())
            if help_text:
                names = (
                    ", ".join(option.opts) if option.opts[0].startswith("-") else option.metavar or option.name.upper()
                )
                rows.append([f"`{names}`", help_text])
        parts.append(_table(rows))
    return "\n".join(parts)


def api() -> str:
    parts = (f"## sqzoo.{m}\n\n::: sqzoo.{m}\n    options:\n      show_root_heading: false" for m in MODULES)
    return "\n\n".join(parts)


def _results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])
