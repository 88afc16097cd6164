"""Finding the framework behind an application: through any middleware, and never at the cost of a request."""

import functools
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask, current_app
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from usagekeeper.discovery import discover, takes


async def item(request: Any) -> PlainTextResponse:
    return PlainTextResponse("item")


def starlette() -> Any:
    return Starlette(routes=[Route("/items/{id}", item)])


def fastapi() -> Any:
    app = FastAPI(openapi_url=None)
    app.add_api_route("/items/{id}", item)
    return app


def flask() -> Any:
    app = Flask("app", static_folder=None)
    app.add_url_rule("/items/<id>", view_func=lambda id: id)
    return app


class Middleware:
    """Any middleware: it keeps what it wraps as `app`."""

    def __init__(self, app: Any) -> None:
        self.app = app


FRAMEWORKS = [
    pytest.param(starlette, "/items/{id}"),
    pytest.param(fastapi, "/items/{id}"),
    pytest.param(flask, "/items/<id>"),
]


def labels(*candidates: Any) -> list[str]:
    return [template.label for template in discover(candidates)]


@pytest.mark.parametrize(("build", "label"), FRAMEWORKS)
def test_the_routes_of_a_framework_are_found(build: Callable[[], Any], label: str) -> None:
    assert labels(build()) == [label]


@pytest.mark.parametrize(("build", "label"), FRAMEWORKS)
def test_routes_are_found_through_middleware(build: Callable[[], Any], label: str) -> None:
    assert labels(Middleware(Middleware(build()))) == [label]


@pytest.mark.parametrize(("build", "label"), FRAMEWORKS)
def test_routes_of_a_subclass_are_found(build: Callable[[], Any], label: str) -> None:
    app = build()
    app.__class__ = type("Own", (type(app),), {"__module__": "shop"})
    assert labels(app) == [label]


def test_routes_are_found_behind_a_bound_method() -> None:
    assert labels(flask().wsgi_app) == ["/items/<id>"]


def test_the_first_candidate_with_a_framework_is_read() -> None:
    assert labels(None, object(), flask(), starlette()) == ["/items/<id>"]


class Endless:
    """Wraps itself."""

    @property
    def app(self) -> Any:
        return self


class Anything:
    """Has every attribute."""

    def __getattr__(self, name: str) -> Any:
        return self


class Closed:
    """Has none, and says so in its own way, as proxies do outside a request."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("working outside of a request")


STRANGERS = [
    None,
    object(),
    len,
    lambda: None,
    Endless(),
    Anything(),
    Closed(),
    5,
    functools.partial(len),
    Middleware(None),
]


@pytest.mark.parametrize("candidate", STRANGERS, ids=lambda candidate: type(candidate).__name__)
def test_what_is_no_framework_has_no_routes(candidate: Any) -> None:
    assert discover([candidate]) == []


def test_an_application_that_has_routes_of_its_own_kind_is_no_framework() -> None:
    class Own:
        routes = ("/a",)

    assert discover([Own()]) == []


def test_a_framework_that_has_changed_costs_its_labels_alone(caplog: pytest.LogCaptureFixture) -> None:
    app = starlette()
    app.router.routes = 5
    with caplog.at_level(logging.WARNING, logger="usagekeeper"):
        assert discover([app]) == []
    assert "cannot read the routes of" in caplog.text


def test_discovery_imports_no_framework_that_is_not_in_use() -> None:
    script = (
        "import sys; from usagekeeper.discovery import discover; discover([object(), len]);"
        " print(*({'flask', 'fastapi', 'starlette'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.split() == []


# -- which kind --------------------------------------------------------------------------------------------------------


class Wsgi:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []

    def served(self, environ: Any, start_response: Any, more: Any = None) -> list[bytes]:
        return []


@pytest.mark.parametrize(
    ("application", "expected"),
    [
        pytest.param(Wsgi(), [2], id="an instance"),
        pytest.param(Wsgi().served, [2, 3], id="an argument more"),
        pytest.param(lambda scope, receive, send: None, [3], id="a function"),
        pytest.param(starlette(), [3], id="Starlette"),
        pytest.param(flask(), [2], id="Flask"),
        pytest.param(flask().wsgi_app, [2], id="a bound method"),
        pytest.param(functools.partial(lambda *given: None), [2, 3], id="whatever is given"),
        pytest.param(current_app, [], id="a proxy outside its context"),
    ],
)
def test_an_application_is_known_by_what_it_takes(application: Any, expected: list[int]) -> None:
    assert [count for count in (2, 3) if takes(application, count)] == expected
