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
) -> None:
    """Upload a weights tag, or a saved model's folder, to the Hugging Face Hub.

    Examples:
    ```
    sqzoo push sq1.ft_cifar10 --repo me/sq1
    sqzoo push runs/my-sq1 --repo me/my-sq1 --private
    ```
    """
    from sqzoo.hub import push as upload
    from sqzoo.registry import create_model, model_name

    source = model_name(model)
    folder = source.startswith("local-dir:")
    commit = upload(
        create_model(source, pretrained=True) if folder else source,
        repo,
        token=token,
        private=private,
        revision=revision,
        trunk=trunk,
    )
    print(f"{model} is at {repo}, commit {commit}")
