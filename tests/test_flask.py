"""Flask's URL map as templates: labels agree with the rule that Werkzeug itself chooses."""

from typing import Any

import pytest
from flask import Flask, request
from werkzeug.routing import BaseConverter, Rule

from usagekeeper import ConfigurationError
from usagekeeper.flask import UsageMiddleware, templates
from usagekeeper.routes import Route, RouteTable


class Code(BaseConverter):
    regex = "[a-z]{2}-[0-9]+"


class Pair(BaseConverter):
    regex = "[a-z]+/[a-z]+"


def build(*rules: str, **options: Any) -> Flask:
    """An application with these rules, "METHOD /path" or "/path"."""
    app = Flask(__name__, static_folder="/static", static_url_path="/static")
    app.url_map.converters |= {"code": Code, "pair": Pair}
    for name, value in options.items():
        setattr(app.url_map, name, value)
    for at, rule in enumerate(rules):
        method, path = ("GET", rule) if rule.startswith("/") else rule.split(" ")
        app.add_url_rule(path, f"view{at}", lambda **_: "here", methods=[method])
    return app


def ask(app: Flask, method: str, path: str) -> str | None:
    """The rule that Werkzeug chose. The environ is made by hand: test clients tidy paths."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
    }
    with app.request_context(environ):
        return request.url_rule.rule if request.url_rule else None


def label(app: Flask, method: str, path: str) -> str | None:
    table = RouteTable([], templates(app))
    return table.label(table.match(path), method)


APP = build(
    "/",
    "/<path:page>",
    "/users/<id>",
    "/users/me",
    "PUT /users/<id>",
    "/items/<code:c>",
    "/items/<float:x>",
    "/items/<int:n>",
    "/items/<int(min=10):n>/parts",
    "/items/<string(length=3):s>/parts",
    "/items/<any(red, green):colour>",
    "/items/<name>.json",
    "/items/v<int:version>-<name>",
    "/folders/",
    "/folders/<path:where>/edit",
    "/folders/<path:where>/",
    "/pairs/<pair:p>",
    "/pairs/<a>/x",
    "POST /pairs/<a>/x",
)
CHOICES = [
    ("GET", "/", "/"),
    ("HEAD", "/", "/"),
    ("OPTIONS", "/users/me", "/users/me"),
    ("GET", "/users/me", "/users/me"),
    ("PUT", "/users/me", "/users/<id>"),
    ("GET", "/users/7", "/users/<id>"),
    ("GET", "/items/de-7", "/items/<code:c>"),
    ("GET", "/items/7.5", "/items/<float:x>"),
    ("GET", "/items/7", "/items/<int:n>"),
    ("GET", "/items/123/parts", "/items/<int(min=10):n>/parts"),
    ("GET", "/items/abc/parts", "/items/<string(length=3):s>/parts"),
    ("GET", "/items/green", "/items/<any(red, green):colour>"),
    ("GET", "/items/x.json", "/items/<name>.json"),
    ("GET", "/items/v2-x", "/items/v<int:version>-<name>"),
    ("GET", "/items/unknown", "/<path:page>"),
    ("GET", "/folders/", "/folders/"),
    ("GET", "/folders/a/b/edit", "/folders/<path:where>/edit"),
    ("GET", "/folders/a/b/", "/folders/<path:where>/"),
    ("GET", "/pairs/a/b", "/pairs/<pair:p>"),
    ("GET", "/pairs/A/x", "/pairs/<a>/x"),
    ("GET", "/static/a/b.css", "/static/<path:filename>"),
    ("GET", "/a/b/c", "/<path:page>"),
    ("GET", "/a//b", "/<path:page>"),
    ("GET", "//users/me", "/users/me"),
    ("GET", "/users/me\n", "/users/<id>"),
    ("GET", "/users/ ", "/users/<id>"),
    ("GET", "//\n", "/<path:page>"),
]


@pytest.mark.parametrize(("method", "path", "expected"), CHOICES, ids=lambda value: str(value))
def test_the_label_is_what_werkzeug_chooses(method: str, path: str, expected: str) -> None:
    assert ask(APP, method, path) == expected
    assert label(APP, method, path) == expected


@pytest.mark.parametrize("rules", [("/users/me", "/users/<id>"), ("/users/<id>", "/users/me")])
def test_text_comes_before_a_parameter_in_any_order(rules: tuple[str, str]) -> None:
    for path in ("/users/me", "/users/7"):
        assert label(build(*rules), "GET", path) == ask(build(*rules), "GET", path)


@pytest.mark.parametrize("rules", [("/<code:a>", "/<string:b>"), ("/<string:b>", "/<code:a>")])
def test_of_two_converters_of_one_weight_the_first_is_tried_first(rules: tuple[str, str]) -> None:
    for path in ("/de-7", "/x"):
        assert label(build(*rules), "GET", path) == ask(build(*rules), "GET", path)


def test_a_method_that_is_not_allowed_keeps_its_label() -> None:
    app = build("/a", "POST /a", "/b/<int:n>")
    assert ask(app, "DELETE", "/b/7") is None
    assert label(app, "DELETE", "/b/7") == "/b/<int:n>"
    assert label(app, "DELETE", "/a") == "/a"


def test_an_unknown_path_has_no_label() -> None:
    app = build("/a/<int:n>")
    assert ask(app, "GET", "/a/x") is None
    assert label(app, "GET", "/a/x") is None


@pytest.mark.parametrize(("path", "expected"), [("/a", "/a/"), ("/d/x", "/d/<path:p>/"), ("/b//c", "/b/c")])
def test_a_redirect_has_the_label_of_its_target(path: str, expected: str) -> None:
    app = build("/a/", "/<b>", "/d/<path:p>/", "/b/c")
    assert ask(app, "GET", path) is None
    assert label(app, "GET", path) == expected


@pytest.mark.parametrize("path", ["/a", "/a/", "/b", "/b/", "/c/x", "/c/x/"])
def test_slashes_may_be_loose(path: str) -> None:
    app = build("/a", "/b/", "/c/<x>", strict_slashes=False)
    assert label(app, "GET", path) == ask(app, "GET", path) is not None


def test_slashes_may_be_kept() -> None:
    app = build("/a//b", "/a/b", merge_slashes=False)
    for path in ("/a//b", "/a/b"):
        assert label(app, "GET", path) == ask(app, "GET", path) == path


def test_only_what_answers_requests_is_described() -> None:
    app = build("/a", "/u/<id>")
    app.url_map.add(Rule("/elsewhere", endpoint="x", build_only=True))
    app.url_map.add(Rule("/socket", endpoint="y", websocket=True))
    app.url_map.add(Rule("/b", endpoint="z", subdomain="<tenant>"))
    assert {t.label for t in templates(app)} == {"/a", "/b", "/u/<id>", "/static/<path:filename>"}
    assert {t.label: t.parameters for t in templates(app)}["/u/<id>"] == {"id": 2}


PROTECTED = build("/admin", "/items/<id>", "/files/<path:name>")


@pytest.mark.parametrize(
    ("path", "entries"),
    [
        pytest.param("//admin", (0,), id="attack 7: slashes in front"),
        pytest.param("///admin", (0,), id="attack 7: more slashes"),
        pytest.param("//items/7", (1,), id="attack 7: with a parameter"),
        pytest.param("/items/\n", (1,), id="attack 9: %0a alone"),
        pytest.param("//items/ ", (1,), id="attacks 7 and 9"),
        pytest.param("/items/7\n", (1,), id="attack 9: %0a"),
        pytest.param("/files/a/../../admin", (0, 2), id="attack 8: dot segments"),
    ],
)
def test_what_werkzeug_serves_stays_protected_and_is_never_exempt(path: str, entries: tuple[int, ...]) -> None:
    patterns = [Route("*", "/admin"), Route("*", "/items/{id}"), Route("*", "/files/*")]
    match = RouteTable(patterns, templates(PROTECTED)).match(path)
    assert ask(PROTECTED, "GET", path) is not None
    assert set(match.entries) >= set(entries)
    assert not match.exact


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("USAGEKEEPER_POLICES", "did you mean USAGEKEEPER_POLICIES?"),
        ("USAGEKEEPER_KEEPER_X", "there are application, routes"),
        ("USAGEKEEPER", 'write app.config["USAGEKEEPER_ENABLED"] = False'),
    ],
)
def test_a_wrong_key_of_the_configuration_is_answered_with_the_right_one(key: str, told: str) -> None:
    app = Flask(__name__)
    app.config[key] = {}
    with pytest.raises(ConfigurationError) as error:
        UsageMiddleware(app, store="memory://")
    assert told in str(error.value)


def test_an_asgi_application_is_answered_with_the_other_import() -> None:
    with pytest.raises(ConfigurationError, match=r"write from usagekeeper\.asgi import UsageMiddleware"):
        UsageMiddleware(lambda scope, receive, send: None, store="memory://")  # type: ignore[arg-type]


def test_the_middleware_that_is_served_in_place_of_the_application_says_so() -> None:
    served: Any = UsageMiddleware(Flask(__name__), store="memory://")
    with pytest.raises(ConfigurationError, match=r"write UsageMiddleware\(app, \.\.\.\) without app = before it"):
        served({}, lambda status, headers: None)
