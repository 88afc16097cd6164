"""FastAPI's routes as templates: labels agree with what FastAPI itself chooses."""

import asyncio
from pathlib import Path
from typing import Any

import flask
import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.routing import Route as Plain

from usagekeeper.fastapi import templates
from usagekeeper.flask import templates as flask_templates
from usagekeeper.routes import Route, RouteTable
from usagekeeper.starlette import templates as starlette_templates


def ask(app: Any, method: str, path: str) -> tuple[int, str | None]:
    """The status, and the path of the route that FastAPI chose last, with the prefixes of its routers."""
    statuses: list[int] = []
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"example.org")],
        "server": ("example.org", 80),
        "scheme": "http",
    }

    messages = [{"type": "http.request", "body": b""}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    asyncio.run(app(scope, receive, send))
    context = scope.get("fastapi", {}).get("effective_route_context")
    chosen = getattr(context, "starlette_route", None) or context or scope.get("route")
    return statuses[0], getattr(chosen, "path_format", None)


def label(app: Any, method: str, path: str) -> str | None:
    table = RouteTable([], templates(app))
    return table.label(table.match(path), method)


def here() -> str:
    return "here"


async def plain(request: Any) -> PlainTextResponse:
    return PlainTextResponse("here")


def build() -> FastAPI:
    """Routers three deep, each with prefixes of its own; mounts of every kind."""
    third = APIRouter(prefix="/x")
    third.add_api_route("/{xid}", here)
    third.add_api_route("/{xid}/y/{n:int}", here, methods=["PUT"])
    second = APIRouter(prefix="/inner")
    second.include_router(third)
    second.add_api_route("/", here)
    first = APIRouter()
    first.include_router(second, prefix="/orgs/{org}")
    first.add_api_route("/users/me", here)
    first.add_api_route("/users/{id}", here)
    first.add_api_route("/users/{id}", here, methods=["DELETE"])

    sub = FastAPI(openapi_url=None)
    sub.include_router(third, prefix="/deep")
    nested = Starlette(routes=[Plain("/p/{q}", plain), Mount("/again", app=sub)])

    app = FastAPI()
    app.include_router(first, prefix="/api/v1")
    app.include_router(third, prefix="/other")
    app.add_api_route("/files/{path:path}", here)
    app.mount("/sub/{tenant}", sub)
    app.mount("/starlette", nested)
    app.mount("/static", PlainTextResponse("file"))
    return app


APP = build()
CHOICES = [
    ("GET", "/api/v1/orgs/acme/inner/x/9", "/api/v1/orgs/{org}/inner/x/{xid}"),
    ("PUT", "/api/v1/orgs/acme/inner/x/9/y/1", "/api/v1/orgs/{org}/inner/x/{xid}/y/{n}"),
    ("GET", "/api/v1/orgs/acme/inner/x/9/y/1", "/api/v1/orgs/{org}/inner/x/{xid}/y/{n}"),
    ("GET", "/api/v1/orgs/acme/inner/", "/api/v1/orgs/{org}/inner/"),
    ("GET", "/api/v1/users/me", "/api/v1/users/me"),
    ("DELETE", "/api/v1/users/me", "/api/v1/users/{id}"),
    ("PATCH", "/api/v1/users/me", "/api/v1/users/me"),
    ("HEAD", "/api/v1/users/7", "/api/v1/users/{id}"),
    ("GET", "/other/x/9", "/other/x/{xid}"),
    ("GET", "/files/a/b", "/files/{path}"),
    ("GET", "/sub/acme/deep/x/9", "/sub/{tenant}/deep/x/{xid}"),
    ("GET", "/starlette/p/1", "/starlette/p/{q}"),
    ("GET", "/starlette/again/deep/x/9", "/starlette/again/deep/x/{xid}"),
    ("GET", "/static/a/b", "/static/{path}"),
    ("GET", "/openapi.json", "/openapi.json"),
    ("GET", "/docs", "/docs"),
]


@pytest.mark.parametrize(("method", "path", "expected"), CHOICES, ids=lambda value: str(value))
def test_the_label_is_what_fastapi_chooses(method: str, path: str, expected: str) -> None:
    status, chosen = ask(APP, method, path)
    assert status in (200, 405)
    assert chosen is None or expected.endswith(chosen)
    assert label(APP, method, path) == expected


@pytest.mark.parametrize("path", ["/api/v1/orgs/acme/inner/x", "/inner/x/9", "/x/9", "/users/me"])
def test_u6_a_path_without_its_prefixes_is_unknown(path: str) -> None:
    assert ask(APP, "GET", path)[0] == 404
    assert label(APP, "GET", path) is None


def test_u6_included_nested_and_mounted_routes_have_their_full_template() -> None:
    labels = {template.label for template in templates(APP)}
    assert {
        "/api/v1/orgs/{org}/inner/x/{xid}",
        "/other/x/{xid}",
        "/sub/{tenant}/deep/x/{xid}",
        "/starlette/again/deep/x/{xid}",
    } <= labels


def test_u6_routes_added_later_to_an_included_router_are_found() -> None:
    router = APIRouter()
    app = FastAPI(openapi_url=None)
    app.include_router(router, prefix="/v1")
    router.add_api_route("/late", here)
    known = ask(app, "GET", "/v1/late")[0] == 200
    assert label(app, "GET", "/v1/late") == ("/v1/late" if known else None)


def test_an_older_flat_list_of_routes_gives_the_same_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = templates(APP)
    monkeypatch.delattr("fastapi.routing.iter_route_contexts", raising=False)
    assert templates(APP) == expected


@pytest.mark.parametrize("first", ["/users/me", "/users/{id}"])
def test_the_order_of_declaration_decides(first: str) -> None:
    app = FastAPI(openapi_url=None)
    app.add_api_route(first, here)
    app.add_api_route("/users/{id}" if first == "/users/me" else "/users/me", here)
    for path in ("/users/me", "/users/7"):
        assert label(app, "GET", path) == ask(app, "GET", path)[1]


def test_a_redirect_has_the_label_of_its_target() -> None:
    assert ask(APP, "GET", "/api/v1/orgs/acme/inner")[0] == 307
    assert label(APP, "GET", "/api/v1/orgs/acme/inner") == "/api/v1/orgs/{org}/inner/"


def test_a_fastapi_application_in_a_starlette_one_is_flattened_too() -> None:
    outer = Starlette(routes=[Mount("/all", app=APP)])
    assert label(outer, "GET", "/all/other/x/1") == "/all/other/x/{xid}"
    assert [t.label for t in starlette_templates(APP)] == [t.label for t in templates(APP)]


@pytest.mark.skipif(not hasattr(FastAPI, "frontend"), reason="this FastAPI has no frontends")
def test_a_frontend_is_asked_last(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("hello")
    app = FastAPI(openapi_url=None)
    router = APIRouter()
    router.frontend("/app", directory=tmp_path)
    app.include_router(router, prefix="/v1")
    app.frontend("/", directory=tmp_path)
    app.add_api_route("/v1/{x}", here)
    assert ask(app, "GET", "/v1/app/index.html")[0] == 200
    labels = {path: label(app, "GET", path) for path in ("/", "/a/b", "/v1/app/a", "/v1/app")}
    assert labels == {"/": "/{path}", "/a/b": "/{path}", "/v1/app/a": "/v1/app/{path}", "/v1/app": "/v1/{x}"}


@pytest.mark.parametrize(
    "path", ["/admin", "//admin", "/admin/", "/admin\n", "/u/1", "/u/1/2", "/x/../admin", "/ADMIN"]
)
def test_u4_one_list_of_patterns_gives_one_verdict_on_both_frameworks(path: str) -> None:
    ours = FastAPI(openapi_url=None)
    ours.add_api_route("/admin", here)
    ours.add_api_route("/u/{id}", here)
    theirs = flask.Flask(__name__, static_folder=None)
    theirs.add_url_rule("/admin", view_func=here)
    theirs.add_url_rule("/u/<id>", "user", here)
    patterns = [Route("*", "/admin"), Route("*", "/u/{id}"), Route("*", "/u/*")]
    verdicts = [RouteTable(patterns, own).match(path)[:2] for own in (templates(ours), flask_templates(theirs), [])]
    assert verdicts[0] == verdicts[1] == verdicts[2]
