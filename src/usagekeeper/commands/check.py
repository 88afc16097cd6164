"""`usagekeeper check METHOD PATH`: what would happen to such a request, and why. Nothing is charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from usagekeeper.commands.show import COLOURS, as_json, say
from usagekeeper.errors import ConfigurationError
from usagekeeper.inspection.explain import ADDRESS, Explanation, Question, Ruling, Standing, explain
from usagekeeper.inspection.locate import locate
from usagekeeper.printable import visible


def run(
    name: str,
    method: str,
    target: str,
    *,
    headers: Sequence[str],
    address: str | None,
    host: str | None,
    data: str | None,
    json: bool,
) -> bool:
    """Explain one request; whether it would be allowed."""
    pairs = [_pair(header) for header in headers]
    if host is not None:
        pairs.insert(0, ("Host", host))
    body = (data or "").encode()
    question = Question(method=method, target=target, headers=pairs, address=address or ADDRESS, body=body)
    found = locate(name)
    try:
        said = explain(found, question)
    finally:
        found.keeper.close()
    if json:
        as_json(asdict(said))
    else:
        _show(said)
    return said.allowed


def _pair(header: str) -> tuple[str, str]:
    name, colon, value = header.partition(":")
    if not colon or not name.strip() or not (name.isascii() and name.isprintable()) or not value.isprintable():
        raise ConfigurationError(f'--header {header!r} is no header: write --header "X-Customer: acme"')
    return name.strip(), value.strip()


def _show(said: Explanation) -> None:
    _line("request", f"{visible(said.method)} {visible(said.path)}")
    if said.canonical != said.path:
        _line("canonical", visible(said.canonical))
    _line("client", visible(said.client or "no address"))
    for option, pattern in said.patterns:
        _line("matches", f"{pattern} ({option})")
    if said.why:
        _line("", said.why)
    if not said.watched:
        say("not watched: it passes through", colour=COLOURS["allowed"])
        return
    _line("route", visible(said.route or "none"))
    if not said.rulings:
        _line("policies", "none: recorded, never limited")
    for ruling in said.rulings:
        _ruling(ruling)
    for note in said.notes:
        _line("note", note)
    for header, value in said.headers:
        _line("header", f"{header}: {visible(value)}")
    if said.allowed:
        say("allowed", colour=COLOURS["allowed"])
    else:
        say(f"refused: {said.status} {said.reason}", colour=COLOURS["refused"])


def _ruling(ruling: Ruling) -> None:
    _line("policy", f"{ruling.policy} ({ruling.mode})")
    if ruling.subject is not None:
        _line("  subject", f"{visible(ruling.subject) or 'everyone'}, from {ruling.source}")
    else:
        _line("  subject", ruling.source)
    if ruling.key:
        _line("  key", " / ".join(map(visible, ruling.key)))
        _line("  cost", str(ruling.cost))
    for standing in ruling.standing:
        _line("  limit", _standing(standing))
    if ruling.why:
        _line("  ", ruling.why)


def _standing(one: Standing) -> str:
    left = f"{one.limit}: {one.remaining} of {one.count} left"
    whole = f", whole in {one.reset} s" if one.reset else ""
    if one.fits:
        return f"{left}{whole}, fits"
    wait = "never fits: it costs more than the limit" if one.retry is None else f"fits in {one.retry} s"
    return f"{left}{whole}, {wait}"


def _line(label: str, text: str) -> None:
    say(f"{label:<10} {text}".rstrip())
