"""Flask: the extension that puts the middleware around an application, and the application's URL map as templates."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

try:
    from flask import Flask, Response, got_request_exception
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('this needs Flask: pip install "usagekeeper[flask]"', name=error.name) from error

from usagekeeper.config import Options, read_settings
from usagekeeper.decisions import refusal
from usagekeeper.discovery import takes
from usagekeeper.errors import ConfigurationError, QuotaExceeded
from usagekeeper.exchange import as_text
from usagekeeper.keeper import UsageKeeper, keeper_of
from usagekeeper.routes import Converter, Piece, Template, between_slashes, segments_of
from usagekeeper.usage import current
from usagekeeper.wsgi import UsageMiddleware as WsgiMiddleware

if TYPE_CHECKING:
    from typing import Unpack

_PREFIX: Final = "USAGEKEEPER_"


class UsageMiddleware:
    """Watches, limits and records the requests of Flask applications.

    ``UsageMiddleware(app, policies=[...])``, or ``middleware = UsageMiddleware(...)`` and later ``middleware(app)`` or
    ``middleware.init_app(app)``. Options come from the arguments, then from ``app.config["USAGEKEEPER_<OPTION>"]``,
    then from the environment. `ConfigurationError` when one is wrong or the application has served already.
    """

    keeper: UsageKeeper | None

    def __init__(
        self, app: Flask | None = None, *, keeper: UsageKeeper | None = None, **options: Unpack[Options]
    ) -> None:
        self._options = options
        self.keeper = keeper_of(keeper, options) if keeper is not None else None
        if keeper is None:
            read_settings(options)  # what is wrong is said where it is written
        if app is not None:
            self.init_app(app)

    def __call__(self, app: Flask, *served: object) -> Flask:
        """`init_app`; returns *app*. It is no application itself."""
        if served:
            raise ConfigurationError(
                "a server calls the UsageMiddleware, and the application is still app:"
                " write UsageMiddleware(app, ...) without app = before it"
            )
        self.init_app(app)
        return app

    def init_app(self, app: Flask) -> None:
        """Put the middleware around *app*; the keeper is then ``app.extensions["usagekeeper"].keeper``."""
        if not isinstance(app, Flask):
            raise ConfigurationError(f"middleware(app) takes a Flask application, not {app!r}: {_instead(app)}")
        if "usagekeeper" in app.extensions:
            raise ConfigurationError(f"{app.name!r} has a UsageMiddleware already: a second one would count twice")
        if getattr(app, "_got_first_request", False):
            raise ConfigurationError(
                f"{app.name!r} has served its first request: call middleware(app) where the application is created"
            )
        if self.keeper is None:
            self.keeper = UsageKeeper(**_configured(app, self._options))
        app.wsgi_app = WsgiMiddleware(app.wsgi_app, keeper=self.keeper)  # type: ignore[method-assign]
        app.extensions["usagekeeper"] = self
        app.register_error_handler(QuotaExceeded, _too_many)
        got_request_exception.connect(_note_exception, app)


def _instead(app: object) -> str:
    if takes(app, 3) and not takes(app, 2):
        return "for FastAPI, Starlette and ASGI write from usagekeeper.asgi import UsageMiddleware"
    return "for another WSGI callable write app = usagekeeper.wsgi.UsageMiddleware(app, policies=[...])"


def _configured(app: Flask, options: Options) -> Options:
    """The options, with those of ``app.config`` where the arguments have none."""
    known = Options.__annotations__
    found = {
        name: value
        for key, value in app.config.items()
        if key.startswith(_PREFIX) and (name := key.removeprefix(_PREFIX).lower()) in known
    }
    unknown = [key for key in app.config if key.startswith(_PREFIX) and key.removeprefix(_PREFIX).lower() not in known]
    if unknown:
        near = get_close_matches(unknown[0].removeprefix(_PREFIX).lower(), known, n=1)
        hint = f"did you mean {_PREFIX}{near[0].upper()}?" if near else f"there are {', '.join(known)}"
        raise ConfigurationError(f"app.config has {unknown[0]}, and there is no such option: {hint}")
    if (whole := _PREFIX.rstrip("_")) in app.config:
        raise ConfigurationError(
            f'app.config has {whole}, and options stand one by one: write app.config["{_PREFIX}ENABLED"] = False'
        )
    merged: Options = {**found, **options}
    return merged


def _note_exception(sender: Flask, exception: BaseException, **_: object) -> None:
    """Flask answers 500 by itself: the class of what was raised is known here alone."""
    ticket = current.get()
    if ticket is not None and not ticket.closed:
        ticket.raised(exception)


def _too_many(error: QuotaExceeded) -> Response:
    ticket = current.get()
    answer = refusal(error.decision, [], None)
    if ticket is not None:
        ticket.reason, ticket.violated, ticket.refusal = error.decision.reason, error.decision.violated, answer
    return Response(answer.body, answer.status, as_text(answer.headers))


# -- the application's own routes --------------------------------------------------------------------------------------

_Key = list[tuple[object, ...]]
"""One tuple for each part of a rule."""


def templates(app: Any) -> list[Template]:
    """The rules of *app* in the order in which Werkzeug tries them: text before parameters, `path` converters last.

    Subdomains and hosts are left out: a rule stands for its path on any of them. WebSocket rules have none.
    """
    seen: dict[tuple[str, ...], int] = {}
    rules = [rule for rule in app.url_map.iter_rules() if not rule.build_only and not rule.websocket]
    keys = {id(rule): _key(rule, seen) for rule in rules}  # in the order of the map, which decides between equals
    return [_template(rule) for rule in sorted(rules, key=lambda rule: keys[id(rule)])]


def _template(rule: Any) -> Template:
    pieces, _ = _pieces(rule)
    branch = rule.rule.endswith("/")  # answers without the slash too, with a redirect or at once
    return Template(
        rule.rule,
        None if rule.methods is None else frozenset(rule.methods),
        segments_of(pieces, end="/?" if branch else ""),
        slash=None if branch or not rule.strict_slashes else False,
    )


def _pieces(rule: Any) -> tuple[list[Piece], dict[str, int]]:
    """The path of a *rule* without a slash at its end, and the weights of its converters."""
    from werkzeug.routing import parse_converter_args

    text = re.sub("//+", "/", rule.rule) if rule.merge_slashes else rule.rule
    pieces: list[Piece] = []
    weights = {}
    for found in _PIECE.finditer(text.rstrip("/")):
        if found["text"]:
            pieces.append(found["text"])
            continue
        args, kwargs = parse_converter_args(found["arguments"] or "")
        converter = rule.get_converter(found["name"], found["converter"] or "default", args, kwargs)
        pieces.append(Converter(found["name"], converter.regex, spans=not converter.part_isolating))
        weights[found["name"]] = converter.weight
    return pieces, weights


_PIECE: Final = re.compile(
    r"<(?:(?P<converter>[a-zA-Z_]\w*)(?:\((?P<arguments>.*?)\))?:)?(?P<name>[a-zA-Z_]\w*)>|(?P<text>[^<]+)", re.ASCII
)


def _key(rule: Any, seen: dict[tuple[str, ...], int]) -> _Key:
    """Sorts rules as `StateMachineMatcher` tries them; of equal weights the one *seen* first comes first."""
    pieces, weights = _pieces(rule)
    key: _Key = []
    path: tuple[str, ...] = ()
    for row in between_slashes(pieces):
        path += ("".join(f"<{piece.regex}>" if isinstance(piece, Converter) else piece for piece in row),)
        texts = [text for piece in row if isinstance(piece, str) for text in piece.split("/") if text]
        names = [piece.name for piece in row if isinstance(piece, Converter)]
        if names:
            lengths = [-len(text) for text in texts]
            weight = [weights[name] for name in names]
            key.append((1, -len(texts), lengths, -len(names), weight, seen.setdefault(path, len(seen))))
        else:
            key.append((0,))
    return [*key, (0,)] if rule.rule.endswith("/") else key
