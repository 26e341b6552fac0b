"""`sqzoo demo`."""

from typing import Annotated

import typer

from sqzoo.cli._options import complete_tag


def run(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Models to choose from: weights tags, run folders, hf-hub:ORG/NAME (default: the complete tags).",
            show_default=False,
            autocompletion=complete_tag,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; another than this shows the page to others.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes any free one.", min=0, max=65535)] = 8000,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Serve a page that classifies pictures in the browser alone; none leaves the machine.

    The first start fetches the page's engine, onnxruntime-web, from npm (33 MB); later ones need no network.

    Examples:
    ```
    sqzoo demo --open
    sqzoo demo runs/photos sq1 --port 8080
    ```
    """
    import webbrowser

    from sqzoo.demo import Page, serve
    from sqzoo.registry import model_name

    page = Page([model_name(name) for name in models or ()])
    with serve(page, host, port) as server:
        bound = f"{f'[{host}]' if ':' in host else host}:{server.server_port}"
        print(f"The page is at http://{bound}/ with {', '.join(page.models)}; Ctrl-C ends it.", flush=True)
        if browser:
            webbrowser.open(f"http://{bound}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
