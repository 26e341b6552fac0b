"""`sqzoo push`."""

from typing import Annotated

import typer

from sqzoo.cli._options import Trunk, argument, complete_tag, option


def run(
    model: Annotated[
        str,
        argument("Weights tag, such as sq1.ft_cifar10, or a saved model's folder.", autocompletion=complete_tag),
    ],
    repo: Annotated[str, option("Repository, created if it does not exist.", metavar="ORG/NAME")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, option("Branch (default: main).")] = None,
    token: Annotated[str | None, option("Access token (default: $HF_TOKEN or that of `hf auth login`).")] = None,
    trunk: Trunk = None,
    transformers_js: Annotated[
        bool, typer.Option("--transformers-js/--no-transformers-js", help="Add the files for transformers.js.")
    ] = True,
) -> None:
    """Upload a weights tag, or a saved model's folder, to the Hugging Face Hub.

    Examples:
    ```
    sqzoo push sq1.ft_cifar10 --repo me/sq1
    sqzoo push runs/my-sq1 --repo me/my-sq1 --private
    ```
    """
    from sqzoo.errors import shown
    from sqzoo.hub import push
    from sqzoo.registry import model_name

    name = model_name(model)
    commit = push(
        name, repo, token=token, private=private, revision=revision, trunk=trunk, transformers_js=transformers_js
    )
    print(f"{shown(model)} is at {repo}, commit {commit}")
