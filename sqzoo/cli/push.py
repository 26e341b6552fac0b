"""`sqzoo push`."""

from typing import Annotated

import typer

from sqzoo.cli import _options


def run(
    model: Annotated[
        str,
        typer.Argument(
            help="Weights tag, such as sq1.ft_cifar10, or a folder that save_pretrained wrote.",
            show_default=False,
            autocompletion=_options.complete_tag,
        ),
    ],
    repo: Annotated[str, typer.Option(metavar="ORG/NAME", help="Made if it is not there.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch (default: main).", show_default=False)] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Access token (default: $HF_TOKEN or that of `hf auth login`).", show_default=False),
    ] = None,
    trunk: _options.Trunk = None,
    transformers_js: Annotated[
        bool, typer.Option("--transformers-js/--no-transformers-js", help="Add files for browsers, by transformers.js.")
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
    from sqzoo.hub import push as upload
    from sqzoo.registry import model_name

    commit = upload(
        model_name(model),
        repo,
        token=token,
        private=private,
        revision=revision,
        trunk=trunk,
        transformers_js=transformers_js,
    )
    print(f"{shown(model)} is at {repo}, commit {commit}")
