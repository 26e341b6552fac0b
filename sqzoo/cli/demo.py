"""`sqzoo demo`."""

from typing import Annotated

import typer

from sqzoo.cli._options import argument, complete_tag, option


def run(
    models: Annotated[
        list[str] | None,
        argument(
            "Models to choose from: weights tags, run folders, hf-hub:ORG/NAME (default: sq1.ft_cifar10, tiny ones).",
            metavar="[MODEL]...",
            autocompletion=complete_tag,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind; 0.0.0.0 lets other machines connect.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind; 0 takes any free one.", min=0, max=65535)] = 8000,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    folder: Annotated[
        str | None,
        option("Write the page as static files for a web host or a Hub Space; serve nothing.", "--write"),
    ] = None,
) -> None:
    """Serve a web page that classifies images in the browser; no image leaves the machine.

    The first start downloads the runtime, onnxruntime-web, from npm (33 MB); later ones need no network.

    Examples:
    ```
    sqzoo demo --open
    sqzoo demo runs/photos sq1 --port 8080
    sqzoo demo sq1 --write site
    ```
    """
    import webbrowser

    from sqzoo.demo import Page, serve
    from sqzoo.registry import model_name

    page = Page([model_name(name) for name in models or ()])
    if folder is not None:
        size = page.write(folder)
        print(f"{folder}: {size / 1e6:.1f} MB, with {', '.join(page.models)}; any static web host can serve it.")
        return
    with serve(page, host, port) as server:
        url = f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/"
        print(f"The page is at {url} with {', '.join(page.models)}; Ctrl-C stops the server.", flush=True)
        if browser:
            webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
