"""``clim serve``: a detector over HTTP, with a page. torch and the extras are imported after the arguments."""

import argparse
import signal
import socket
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from clim.errors import UserError, require_packages
from clim.sources import IMAGES
from clim_commands.inputs import add_overrides, count, quiet_logging, require_files, whole

NEEDED = ("fastapi", "uvicorn", "python_multipart", "httpx")
MOST_EXAMPLES = 12


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clim serve``."""
    default, add = " (%(default)s)", parser.add_argument
    add("--weights", type=Path, required=True, metavar="FILE", help="checkpoint")
    add("--compare", type=Path, metavar="FILE", help="second checkpoint: the page shows both side by side")
    add("--config-file", metavar="FILE", help="YAML of a checkpoint that does not hold its own")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: every network" + default)
    add("--port", type=partial(whole, most=65535), default=7860, help="0: any free one" + default)
    add("--no-page", action="store_true", help="the HTTP interface alone, without Gradio")
    add("--examples", type=Path, metavar="DIR", help="folder with images that the page offers")
    urls = "read images at URLs: of the public internet, or of any network"
    add("--allow-urls", nargs="?", const="public", default="", choices=["public", "any"], help=urls)
    add("--max-megabytes", type=count, default=16, help="of a request, or of an image at a URL" + default)
    add("--max-megapixels", type=count, default=50, help="of an image" + default)
    add("--max-words", type=count, default=300, help="of a request" + default)
    add("--max-waiting", type=count, default=8, help="requests that wait; more are answered by 503" + default)
    add("--timeout", type=count, default=30, metavar="SECONDS", help="of a request" + default)
    add_overrides(parser)


def serve(args: argparse.Namespace) -> None:
    """Answer requests over HTTP: images and words → boxes as JSON, and a page to try it.

        clim serve --weights model_final.pth
        curl -F image=@photo.jpg -F words="dog, umbrella" http://127.0.0.1:7860/predict

    See docs/serve.md for fields, limits and safety.
    """
    examples = _check(args)
    with _bind(args.host, args.port) as bound:
        quiet_logging()
        import uvicorn

        from .api import create_app
        from .service import Limits, Service

        limits = Limits(
            bytes=args.max_megabytes * 1_000_000, pixels=args.max_megapixels * 1_000_000, words=args.max_words,
            seconds=args.timeout, waiting=args.max_waiting,
        )  # fmt: skip
        paths = [path for path in (args.weights, args.compare) if path]
        service = Service(dict(zip(model_names(paths), (_load(path, args) for path in paths), strict=True)), limits)
        app = create_app(service, urls=args.allow_urls)
        if not args.no_page:
            from .page import add_page

            app = add_page(app, service, examples=examples)
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"http://{host}:{bound.getsockname()[1]}  (Ctrl+C ends it)", flush=True)
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=5)
        if threading.current_thread() is threading.main_thread():  # end as by Ctrl+C: the page's files are removed
            signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[bound])


def model_names(paths: list[Path]) -> list[str]:
    """A different name for each checkpoint: its folder's for a ``model_final.pth``, else the file's."""
    names = [path.absolute().parent.name if path.stem == "model_final" else path.stem for path in paths]
    return [name if name not in names[:i] else f"{name} {i + 1}" for i, name in enumerate(names)]


def _check(args: argparse.Namespace) -> list[Path]:
    """The images that the page offers. Raises UserError before anything is loaded."""
    require_packages("clim serve", NEEDED if args.no_page else (*NEEDED, "gradio"))
    require_files({"--weights": args.weights, "--compare": args.compare})
    if args.examples is None:
        return []
    images = [path for path in sorted(args.examples.glob("*")) if path.suffix.lower() in IMAGES and path.is_file()]
    if not images:
        raise UserError(f"--examples {args.examples}: there is no image in this folder.")
    return images[:MOST_EXAMPLES]


def _bind(host: str, port: int) -> socket.socket:
    """A socket of this address, before a model is loaded. Raises UserError."""
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address[0], port))
        bound.listen()  # otherwise another server could take the port while the model loads
        return bound
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} --port {port} cannot be used ({error}): choose others.") from error


def _load(path: Path, args: argparse.Namespace):
    from clim.detector import Detector

    from .service import ServedModel

    model = ServedModel(Detector(path, config=args.config_file, overrides=args.opts))
    model.embed(model.names[:1])  # loads the text tower before the first request
    return model
