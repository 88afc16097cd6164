"""The command line, `usagekeeper` or `python -m usagekeeper`: what each command takes, and how it ends."""

from __future__ import annotations

from importlib import import_module
from typing import Any

try:
    import click
except ModuleNotFoundError:
    raise SystemExit('the command line needs click: pip install "usagekeeper[cli]"') from None

from usagekeeper import __version__
from usagekeeper.errors import UsageError
from usagekeeper.printable import sentence


class Failure(click.ClickException):
    """What a command could not do, as a sentence. 1 is left to commands that did their work and found fault."""

    exit_code = 2


def _run(command: str, *arguments: Any, **options: Any) -> Any:
    """The command's `run`, in a module of its own that is imported now: help and errors need none of them."""
    try:
        return import_module(f"usagekeeper.{command}").run(*arguments, **options)
    except UsageError as error:
        raise Failure(sentence(str(error))) from error


def _end(fine: bool) -> None:
    if not fine:
        raise SystemExit(1)


_json = click.option("--json", "json", is_flag=True, help="Answer in JSON.")
_app = click.option(
    "--app",
    "name",
    envvar="USAGEKEEPER_APP",
    metavar="MODULE:APP",
    help='The application, as in "shop.main:app" or "shop.main:create_app()"; also a UsageKeeper.',
    show_envvar=True,
)


def _named(name: str | None) -> str:
    if not name:
        raise Failure("which application? Write --app module:app, or set USAGEKEEPER_APP=module:app")
    return name


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="usagekeeper")
def main() -> None:
    """Know, limit and record the use of an API."""


@main.command()
@click.option("--seconds", type=click.IntRange(min=0), default=30, show_default=True, help="0: until interrupted.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the sample API; default: one that is free.")
@click.option("--json", "as_json", is_flag=True, help="Show nothing but the figures at the end, as JSON.")
def demo(seconds: int, port: int, as_json: bool) -> None:
    """Run a sample API with clients that call it.

    Shows what is allowed, refused and recorded. Ends with 1 when requests, answers and records do not add up.
    """
    _end(_run("demo.command", seconds=seconds, port=port, as_json=as_json))


@main.command()
@_app
@_json
def routes(name: str | None, json: bool) -> None:
    """Show every route, and which policies limit it."""
    _run("commands.routes", _named(name), json=json)


@main.command()
@click.argument("method")
@click.argument("target", metavar="PATH")
@_app
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="May be given several times.")
@click.option("--from", "address", metavar="ADDRESS", help="The client's address; default: 127.0.0.1.")
@click.option("--host", metavar="NAME", help="The Host header.")
@click.option("--data", metavar="TEXT", help="The body, JSON unless a Content-Type is given.")
@_json
def check(name: str | None, method: str, target: str, **options: Any) -> None:
    """Explain what would happen to a request. Nothing is charged.

    PATH is what a client sends, with its query and its escapes: "/api/items/7?page=2". Ends with 1 when the request
    would be refused.
    """
    _end(_run("commands.check", _named(name), method, target, **options))


@main.command()
@_app
@click.option("--store", "url", metavar="URL", help='Instead of --app: "sqlite:///usagekeeper.db".')
@click.option("--lines", type=click.IntRange(min=0), default=10, show_default=True, help="Records to begin with.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Go on with those that come.")
@click.option("--subject", help="Of this subject alone.")
@click.option("--route", help='Of this route alone, as "/api/items/{item_id}".')
@click.option("--refused", is_flag=True, help="Refused ones alone.")
@_json
def tail(name: str | None, url: str | None, **options: Any) -> None:
    """Show records as they come, one a line, until interrupted."""
    _run("commands.tail", None if url else _named(name), url, **options)


@main.command()
@_app
@click.option("--workers", type=click.IntRange(min=1), help="As the server's; default: from the environment.")
@click.option("--forwarded-allow-ips", "allowed", metavar="ADDRESSES", help="As the server's; default: likewise.")
@_json
def doctor(name: str | None, workers: int | None, allowed: str | None, json: bool) -> None:
    """Find what is wrong, and the line to change.

    Run it where the server runs, with its environment. Ends with 1 when there is an error.
    """
    _end(_run("commands.doctor", _named(name), workers=workers, allowed=allowed, json=json))
