"""The command line, `sqzoo …`: thin over the library's functions."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sqzoo.errors import SqzooError, UnknownModelError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a mistake of the user's ends in one sentence on stderr and exit code 2."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except SqzooError as e:
        print(f"sqzoo: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsqzoo: stopped; the same command goes on from the last finished epoch.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sqzoo", description="Tiny image classifiers made from SqueezeNet.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("list", help="list models and weights tags")
    p.add_argument("pattern", nargs="?", default="*", help="shell pattern, such as 'sq*'")
    p.set_defaults(run=_list)

    p = commands.add_parser("predict", help="classify pictures")
    p.add_argument("images", nargs="+", help="picture files")
    p.add_argument("--model", default="sq1", help="model or weights tag (default: sq1)")
    p.add_argument("--top", type=int, default=3, help="classes a picture (default: 3)")
    p.add_argument("--trunk", help="file or folder with the ImageNet trunk, for tags stored as a head")
    p.set_defaults(run=_predict)

    p = commands.add_parser("train", help="train a model by a recipe, or go on with a stopped run")
    p.add_argument("model", help="architecture, such as sq1")
    p.add_argument("--recipe", default="paper", help="paper, paper_held_out or finetune (default: paper)")
    p.add_argument("--run", dest="folder", help="run folder (default: runs/MODEL-RECIPE-SEED)")
    p.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    p.add_argument("--trunk", help="file or folder with the ImageNet trunk (default: $SQZOO_TRUNKS, else torchvision)")
    p.add_argument("--cache", help="folder for the frozen trunk's features (default: in memory)")
    p.add_argument("--device", default="cpu")
    p.add_argument("--set", dest="changes", action="append", default=[], metavar="FIELD=JSON", help="change the recipe")
    p.set_defaults(run=_train)

    p = commands.add_parser("push", help="upload a weights tag, or a saved model's folder, to the Hugging Face Hub")
    p.add_argument("model", help="weights tag, such as sq1.ft_cifar10, or a folder that save_pretrained wrote")
    p.add_argument("--repo", required=True, help="ORG/NAME; made if it is not there")
    p.add_argument("--private", action="store_true", help="make the repository private")
    p.add_argument("--revision", help="branch (default: main)")
    p.add_argument("--token", help="access token (default: $HF_TOKEN or that of `hf auth login`)")
    p.add_argument("--trunk", help="file or folder with the ImageNet trunk, for tags stored as a head")
    p.set_defaults(run=_push)

    p = commands.add_parser("cache", help="list, verify or remove what is kept on this machine")
    p.add_argument(
        "--verify", action="store_true", help="read and hash everything; exit code 1 where something is damaged"
    )
    p.add_argument("--remove", metavar="NAME", help="remove a trunk or Hub model from the cache")
    p.set_defaults(run=_cache)
    return parser


def _push(arguments: argparse.Namespace) -> int:
    from sqzoo.hub import from_pretrained, push

    folder = Path(arguments.model).is_dir()
    commit = push(
        from_pretrained(arguments.model) if folder else arguments.model,
        arguments.repo,
        token=arguments.token,
        private=arguments.private,
        revision=arguments.revision,
        trunk=arguments.trunk,
    )
    print(f"{arguments.model} is at {arguments.repo}, commit {commit}")
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    from sqzoo.cache import kept, remove

    if arguments.remove:
        gone = remove(arguments.remove)
        print(f"removed {gone.name}, {gone.size / 1e6:.2f} MB, from {gone.path}")
        return 0
    damaged = 0
    for each in kept():
        wrong = each.damage() if arguments.verify else None
        damaged += wrong is not None
        state = f"  {wrong or 'undamaged'}" if arguments.verify else ""
        print(f"{each.kind:8} {each.name:32} {each.size / 1e6:8.2f} MB  {each.path}{state}")
    return 1 if damaged else 0


def _list(arguments: argparse.Namespace) -> int:
    from sqzoo import get_weights, list_models

    names = list_models(arguments.pattern)
    if not names:
        raise UnknownModelError(f"No model matches {arguments.pattern!r}; there are: {', '.join(list_models())}.")
    for name in names:
        print(name)
        for tag in list_models(f"{name}.*", pretrained=True):
            entry = get_weights(tag)
            print(
                f"  {tag}  {entry.metrics['test_top1']:.2f} %  {entry.params:,} parameters  {entry.size / 1e6:.2f} MB"
            )
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from sqzoo import create_model
    from sqzoo.predict import predict

    model = create_model(arguments.model, pretrained=True, trunk=arguments.trunk)
    for image, found in zip(arguments.images, predict(model, arguments.images, top_k=arguments.top), strict=True):
        print(f"{image}: " + ", ".join(f"{p.label} {100 * p.probability:.1f} %" for p in found))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from sqzoo.data import cifar10
    from sqzoo.errors import ArgumentError
    from sqzoo.registry import check_name
    from sqzoo.train import recipe, train

    for name in arguments.model.split("+"):
        check_name(name)
    changes = {}
    for change in arguments.changes:
        key, _, value = change.partition("=")
        try:
            changes[key] = json.loads(value)
        except ValueError as e:
            raise ArgumentError(f"--set {change!r} is not FIELD=JSON; write, say, --set lr=0.001.") from e
    if "sizes" in changes:
        changes["sizes"] = tuple((side, epochs) for side, epochs in changes["sizes"])
    plan = recipe(arguments.recipe, arguments.model, **changes)
    folder = Path(arguments.folder or f"runs/{plan.model}-{arguments.recipe}-{plan.seed}")
    result = train(
        plan,
        cifar10("train", arguments.data),
        cifar10("test", arguments.data),
        folder,
        trunk=arguments.trunk,
        cache=arguments.cache,
        device=arguments.device,
    )
    test = result["test"]
    print(f"{folder}: epoch {result['epoch']}, test top-1 {test['top1']:.2f} %, loss {test['loss']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
