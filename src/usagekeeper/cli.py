"""The command line, `usagekeeper` or `python -m usagekeeper`: what each command takes, and how it ends."""

from __future__ import annotations

from importlib import import_module

try:
    import click
except ModuleNotFoundError:
    raise SystemExit('the command line needs click: pip install "usagekeeper[cli]"') from None

from usagekeeper import __version__
from usagekeeper.errors import UsageError


class Failure(click.ClickException):
    """What a command could not do, as a sentence. 1 is left to commands that did their work and found fault."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="usagekeeper")
def main() -> None:
    """Know, limit and record the use of an API."""


@main.command()
@click.option("--seconds", type=click.IntRange(min=0), default=30, show_default=True, help="0: until interrupted.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the sample API; default: one that is free.")
@click.option("--json", "as_json", is_flag=True, help="Show nothing but the figures at the end, as JSON.")
def demo(seconds: int, port: int, as_json: bool) -> None:
    """Run a sample API with clients that call it, and show what is allowed, refused and recorded.

    Ends with 1 when requests, answers and records do not add up.
    """
    try:
        adds_up = import_module("usagekeeper.demo.command").run(seconds=seconds, port=port, as_json=as_json)
    except UsageError as error:
        raise Failure(str(error)) from error
    if not adds_up:
        raise SystemExit(1)
