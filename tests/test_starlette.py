"""Starlette's routes as templates: labels agree with what Starlette itself chooses."""

import asyncio
from typing import Any

import pytest
import starlette
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Router, WebSocketRoute
from starlette.routing import Route as Path
from starlette.websockets import WebSocket

from usagekeeper.routes import Route, RouteTable
from usagekeeper.starlette import templates


class Code(Convertor[str]):
    regex = "[a-z]{2}-[0-9]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class Anything(Convertor[str]):
    regex = r"\S+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("code", Code())
register_url_convertor("anything", Anything())


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("here")


async def greet(websocket: WebSocket) -> None:
    await websocket.close()


async def opaque(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("files")(scope, receive, send)


class Endpoint(HTTPEndpoint):
    async def get(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("here")


def ask(app: Any, method: str, path: str, host: str = "example.org") -> tuple[int, str | None]:
    """The status, and the path of the route that Starlette chose last (below its mounts)."""
    statuses: list[int] = []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", host.encode())],
        "server": ("example.org", 80),
        "scheme": "http",
    }

    messages = [{"type": "http.request", "body": b""}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    handled: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:  # older releases do not tell which route they chose
        for kind in (Path, Mount):
            patch.setattr(kind, "handle", noting(kind.handle, handled))
        asyncio.run(app(scope, receive, send))
    return statuses[0], getattr(scope.get("route", handled[-1] if handled else None), "path_format", None)


def noting(handle: Any, handled: list[Any]) -> Any:
    """The `handle` of routes, remembered."""

    async def noted(self: Any, scope: Any, receive: Any, send: Any) -> None:
        handled.append(self)
        await handle(self, scope, receive, send)

    return noted


def label(app: Any, method: str, path: str) -> str | None:
    table = RouteTable([], templates(app))
    return table.label(table.match(path), method)


LETTERS = [Path("/", answer), Path("/{letter}", answer, methods=["GET", "PUT"])]
APP = Starlette(
    routes=[
        Path("/", answer),
        Path("/users/me", answer),
        Path("/users/{id}", answer),
        Path("/users/{id}", answer, methods=["PUT"]),
        Path("/teams/{id}", answer),
        Path("/teams/me", answer, methods=["GET", "DELETE"]),
        Path("/items/{n:int}", answer),
        Path("/items/{x:float}", answer),
        Path("/items/{x:uuid}/parts", answer),
        Path("/items/{code:code}", answer),
        Path("/items/{name}.json", answer),
        Path("/any/{rest:anything}/end", answer),
        Path("/slash/", answer),
        Path("/files/{file:path}/meta", answer),
        Path("/files/{file:path}", answer),
        Path("/class", Endpoint),
        WebSocketRoute("/socket", greet),
        Mount("/static", app=opaque),
        Mount("/m/{tenant}", routes=[Path("/b/{bid:int}", answer), Mount("/deep", routes=LETTERS)]),
        Mount("/wrapped", app=Router(LETTERS), middleware=[Middleware(GZipMiddleware)]),
        Mount("/outer", app=GZipMiddleware(Starlette(routes=[Path("/in", answer)]))),
        Path("/static/late", answer),
        Path("/m/{tenant}/late", answer, methods=["POST"]),
    ]
)
CHOICES = [
    ("GET", "/", "/"),
    ("HEAD", "/", "/"),
    ("POST", "/", "/"),
    ("GET", "/users/me", "/users/me"),
    ("GET", "/users/7", "/users/{id}"),
    ("PUT", "/users/me", "/users/{id}"),
    ("DELETE", "/users/me", "/users/me"),
    ("GET", "/teams/me", "/teams/{id}"),
    ("DELETE", "/teams/me", "/teams/me"),
    ("GET", "/items/7", "/items/{n}"),
    ("GET", "/items/7.5", "/items/{x}"),
    ("GET", "/items/c0ffee00-0000-4000-8000-000000000000/parts", "/items/{x}/parts"),
    ("GET", "/items/de-7", "/items/{code}"),
    ("GET", "/items/x.json", "/items/{name}.json"),
    ("GET", "/any/a/b/c/end", "/any/{rest}/end"),
    ("GET", "/slash/", "/slash/"),
    ("GET", "/files/", "/files/{file}"),
    ("GET", "/files/a/b", "/files/{file}"),
    ("GET", "/files/a/meta", "/files/{file}/meta"),
    ("GET", "/files//a", "/files/{file}"),
    ("PATCH", "/class", "/class"),
    ("GET", "/static/a/b.css", "/static/{path}"),
    ("GET", "/static/late", "/static/{path}"),
    ("GET", "/m/acme/b/9", "/m/{tenant}/b/{bid}"),
    ("DELETE", "/m/acme/b/9", "/m/{tenant}/b/{bid}"),
    ("GET", "/m/acme/deep/", "/m/{tenant}/deep/"),
    ("PUT", "/m/acme/deep/x", "/m/{tenant}/deep/{letter}"),
    ("POST", "/m/acme/late", "/m/{tenant}/{path}"),
    ("GET", "/m/acme/b/x", "/m/{tenant}/{path}"),
    ("GET", "/wrapped/x", "/wrapped/{letter}"),
    ("GET", "/outer/in", "/outer/in"),
]


@pytest.mark.parametrize(("method", "path", "expected"), CHOICES, ids=lambda value: str(value))
def test_the_label_is_what_starlette_chooses(method: str, path: str, expected: str) -> None:
    status, chosen = ask(APP, method, path)
    assert status in (200, 405) or expected.endswith("{path}")
    assert chosen is not None
    assert expected.endswith(chosen)
    assert label(APP, method, path) == expected


@pytest.mark.parametrize("path", ["/items/x", "/nothing", "/users", "/users/1/2", "/socket"])
def test_a_path_that_starlette_does_not_know_has_no_label(path: str) -> None:
    assert ask(APP, "GET", path) == (404, None)
    assert label(APP, "GET", path) is None


@pytest.mark.parametrize(
    ("path", "expected"), [("/slash", "/slash/"), ("/users/me/", "/users/me"), ("/static", "/static/{path}")]
)
def test_a_redirect_has_the_label_of_its_target(path: str, expected: str) -> None:
    assert ask(APP, "GET", path)[0] == 307
    assert label(APP, "GET", path) == expected


def test_attack_5_a_forged_host_changes_nothing() -> None:
    for host in ("example.org/users/me?", "evil.test/static", ""):
        assert ask(APP, "GET", "/items/7", host=host)[1] == "/items/{n}"
    assert label(APP, "GET", "/items/7") == "/items/{n}"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/users/me\n", "/users/me"),
        ("/items/7\n", "/items/{n}"),
        ("/files/a\n", "/files/{file}"),
        ("/users/\n", "/users/{id}"),
    ],
)
def test_attack_9_the_newline_that_starlette_forgives_is_forgiven(path: str, expected: str) -> None:
    assert ask(APP, "GET", path) == (200, expected)
    table = RouteTable([Route("GET", expected.replace("{file}", "*"))], templates(APP))
    assert table.label(match := table.match(path), "GET") == expected
    assert match.entries == (0,)
    assert not match.exact


def test_attack_9_a_mount_that_loses_its_place_falls_under_every_pattern() -> None:
    """Starlette cuts one character too many, and the mounted application sees the whole path again."""
    app = Starlette(routes=[Mount("/admin", routes=[Path("/{section}/{key}", answer)])])
    assert ask(app, "GET", "/admin/keys")[0] == 404
    if starlette.__version__ != "0.37.2":  # the oldest that is promised had not begun to
        assert ask(app, "GET", "/admin/keys\n")[0] == 200
    table = RouteTable([Route("*", "/admin/{section}/{key}"), Route("*", "/other")], templates(app))
    assert table.match("/admin/keys\n") == (False, (0, 1), (1,))
    assert table.match("/admin/keys").entries == ()


@pytest.mark.parametrize("path", ["//users/me", "/users//me", "/users/me;x", "/users/%6de", "/USERS/me"])
def test_attack_7_what_starlette_refuses_is_at_most_too_well_protected(path: str) -> None:
    table = RouteTable([Route("*", "/users/me")], templates(APP))
    assert ask(APP, "DELETE", path)[0] in (404, 405)
    assert not table.match(path).exact or not table.match(path).entries


def test_hosts_come_last_and_keep_nothing() -> None:
    app = Starlette(
        routes=[
            Host("api.example.org", app=Router([Path("/v1", answer), Mount("/", app=opaque)])),
            Host("files.example.org", app=opaque),
            Path("/v2", answer),
        ]
    )
    assert [template.label for template in templates(app)] == ["/v2", "/v1", "/{path}"]
    assert label(app, "GET", "/v2") == "/v2"


def test_an_application_mounted_in_itself_is_described_once() -> None:
    app = Starlette(routes=[Path("/a", answer)])
    app.mount("/again", app)
    assert [template.label for template in templates(app)] == ["/a", "/again/{path}"]
    assert label(app, "GET", "/again/a") == "/again/{path}"
    app.host("example.org", app)
    assert len(templates(app)) == 2


def test_two_mounts_of_equal_routers_are_described_twice() -> None:
    inner = Mount("/inner", app=Router([Path("/a", answer)]))
    app = Starlette(routes=[Mount("/outer", app=Router([inner])), Mount("/other", app=Router([inner]))])
    assert label(app, "GET", "/outer/inner/a") == "/outer/inner/a"
    assert label(app, "GET", "/other/inner/a") == "/other/inner/a"


def test_routes_are_found_through_the_middleware_around_them() -> None:
    wrapped = GZipMiddleware(GZipMiddleware(APP))
    assert templates(wrapped) == templates(APP)


def test_a_wrapper_around_itself_has_no_routes() -> None:
    class Circle:
        def __init__(self) -> None:
            self.app = self

    app = Starlette(routes=[Mount("/round", app=Circle())])  # type: ignore[arg-type]
    assert [template.label for template in templates(app)] == ["/round/{path}"]


def test_parameters_stand_where_the_path_has_them() -> None:
    found = {template.label: template.parameters for template in templates(APP)}
    assert found["/m/{tenant}/b/{bid}"] == {"tenant": 2, "bid": 4}
    assert found["/items/{name}.json"] == {}
    assert found["/files/{file}"] == {}


def test_a_route_of_an_unknown_kind_is_passed_over() -> None:
    class Odd(Path):
        path_format = None  # type: ignore[assignment]

        def __init__(self) -> None:
            pass

    app = Starlette(routes=[Path("/a", answer)])
    app.router.routes.insert(0, Odd())
    assert [template.label for template in templates(app)] == ["/a"]
