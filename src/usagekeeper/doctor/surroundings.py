"""How the server will run: what the environment and the options of its command line say."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import NamedTuple

from usagekeeper.errors import ConfigurationError


class Surroundings(NamedTuple):
    """What is known of the server, and from where; None is "nothing was said"."""

    workers: int | None
    workers_from: str
    allowed: str | None
    """Whose forwarded addresses the server believes."""
    allowed_from: str
    rewrites: bool
    """False where the server was told not to read forwarded headers."""

    @classmethod
    def read(cls, environ: Mapping[str, str], workers: int | None, allowed: str | None) -> Surroundings:
        """From the options where they are given, then from *environ* as uvicorn and gunicorn read it."""
        more = _gunicorn(environ.get("GUNICORN_CMD_ARGS", ""))
        counts = [
            ("--workers", None if workers is None else str(workers)),
            ("GUNICORN_CMD_ARGS", more.get("--workers") or more.get("-w")),
            ("UVICORN_WORKERS", environ.get("UVICORN_WORKERS")),
            ("WEB_CONCURRENCY", environ.get("WEB_CONCURRENCY")),
        ]
        trusted = [
            ("--forwarded-allow-ips", allowed),
            ("GUNICORN_CMD_ARGS", more.get("--forwarded-allow-ips")),
            ("UVICORN_FORWARDED_ALLOW_IPS", environ.get("UVICORN_FORWARDED_ALLOW_IPS")),
            ("FORWARDED_ALLOW_IPS", environ.get("FORWARDED_ALLOW_IPS")),
        ]
        workers_from, count = next(((place, value) for place, value in counts if value), ("", None))
        allowed_from, ips = next(((place, value) for place, value in trusted if value), ("", None))
        rewrites = environ.get("UVICORN_PROXY_HEADERS", "").lower() not in ("0", "false", "no", "off", "f", "n")
        return cls(_number(workers_from, count), workers_from, ips, allowed_from, rewrites)

    def told(self) -> str:
        """What was read."""
        count = f"{self.workers} workers ({self.workers_from})" if self.workers else "no number of workers"
        trust = f"proxies {self.allowed} ({self.allowed_from})" if self.allowed else "no trusted proxies of the server"
        return f"{count}, {trust}"


def _number(place: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise ConfigurationError(f"{place} is a number of workers, not {text!r}")
    return int(text)


def _gunicorn(arguments: str) -> dict[str, str]:
    """The options in GUNICORN_CMD_ARGS."""
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise ConfigurationError(f"GUNICORN_CMD_ARGS cannot be read: {arguments!r}: {error}") from error
    found = {}
    for at, word in enumerate(words):
        if word.startswith("-w") and word[2:]:
            found["-w"] = word[2:]  # as in -w4
        elif word.startswith("-"):
            name, equals, value = word.partition("=")
            found[name] = value if equals else "".join(words[at + 1 : at + 2])
    return found
