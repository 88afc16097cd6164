"""Patterns, canonical paths and the table that matches them."""

import random
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usagekeeper import routes
from usagekeeper.errors import ConfigurationError
from usagekeeper.routes import (
    Converter,
    Parameter,
    Rest,
    Route,
    RouteTable,
    Template,
    canonical,
    segments_of,
    specific,
)


def table(*patterns: str) -> RouteTable:
    return RouteTable([Route.parse(pattern) for pattern in patterns])


def matches(pattern: str, path: str) -> bool:
    return table(pattern).match(path).entries == (0,)


def exempt(pattern: str, path: str) -> bool:
    """How a whitelist is read: strictly."""
    match = table(pattern).match(path)
    return match.exact and match.entries == (0,)


def template(path: str, *methods: str, **options: Any) -> Template:
    """As Starlette would have it: `{name}`, `{name:int}`, `{name:path}`."""
    regexes = {"": "[^/]+", "int": "[0-9]+", "path": ".*"}
    pieces: list[str | Converter] = []
    for at, text in enumerate(re.split(r"\{(\w+(?::\w+)?)\}", path)):
        name, _, kind = text.partition(":")
        pieces += [Converter(name, regexes[kind], kind == "path")] if at % 2 else [text] if text else []
    label = re.sub(r":\w+", "", path)
    return Template(label, frozenset(methods) or None, segments_of(pieces), slash=path.endswith("/"), **options)


# -- what a user writes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "method", "pattern"),
    [
        pytest.param({"method": "GET", "url": "/api/*"}, "GET", "/api/*", id="mapping"),
        pytest.param({"url": "/api/*"}, "*", "/api/*", id="mapping without a method"),
        pytest.param("GET /api/*", "GET", "/api/*", id="one line"),
        pytest.param("get  /api/*", "GET", "/api/*", id="lower case"),
        pytest.param("* /api/*", "*", "/api/*", id="any method"),
        pytest.param("/api/*", "*", "/api/*", id="pattern alone"),
        pytest.param("*", "*", "*", id="everything"),
        pytest.param("DELETE *", "DELETE", "*", id="every path of one method"),
        pytest.param(" GET /a ", "GET", "/a", id="space around"),
        pytest.param("/a b", "*", "/a b", id="space within"),
        pytest.param("/a/", "*", "/a", id="slash at the end"),
        pytest.param("/", "*", "/", id="root"),
        pytest.param(Route("PATCH", "/a"), "PATCH", "/a", id="a route"),
    ],
)
def test_a_route_is_read_from_every_form(value: Any, method: str, pattern: str) -> None:
    assert Route.parse(value) == Route(method, pattern)
    assert (Route.parse(value).method, Route.parse(value).pattern) == (method, pattern)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"method": "GET", "path": "/a"}, id="unknown key"),
        pytest.param({"method": "GET", "url": "/a", "name": "x"}, id="one key too many"),
        pytest.param({"method": "GET"}, id="no url"),
        pytest.param({"url": None}, id="url is None"),
        pytest.param({"url": "/a", "method": None}, id="method is None"),
        pytest.param({"url": "/a", "method": ["GET"]}, id="several methods"),
        pytest.param({"url": "/a", "method": ""}, id="empty method"),
        pytest.param("GET,POST /a", id="methods in one word"),
        pytest.param(7, id="a number"),
        pytest.param(("GET", "/a"), id="a tuple"),
    ],
)
def test_what_is_no_route_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError):
        Route.parse(value)


@pytest.mark.parametrize(
    ("pattern", "better"),
    [
        pytest.param("/api*", "/api/*", id="star after text"),
        pytest.param("*.json", "/*", id="star before text"),
        pytest.param("/files/*.json", "/files/*", id="star before text, below"),
        pytest.param("/a/**", "/a/*", id="two stars"),
        pytest.param("/a/*/", "/a/*", id="slash after the last star"),
        pytest.param("/api/.*", "/api/*", id="regex"),
        pytest.param("^/api/.*$", "/api/*", id="regex with anchors"),
        pytest.param(r"^/api/items/\d+$", "/api/items/*", id="regex of digits"),
        pytest.param("^/health$", "/health", id="regex of plain text"),
        pytest.param("/api.*", "/api/*", id="regex after text"),
        pytest.param("/api/* GET", "GET /api/*", id="method last"),
        pytest.param("a/b", "/a/b", id="no slash in front"),
        pytest.param("https://example.org/a", "/a", id="whole URL"),
        pytest.param("/{id}x", "/{id}", id="text after a parameter"),
        pytest.param("/v{id}/b", "/{id}/b", id="text before a parameter"),
        pytest.param("/:id.json", "/*", id="text after a colon parameter"),
        pytest.param("/:", "/*", id="colon alone"),
        pytest.param("/{id:int}", "/{id}", id="Starlette converter"),
        pytest.param("/a/{id:int}/b", "/a/{id}/b", id="Starlette converter within"),
        pytest.param("/<id>", "/{id}", id="Flask parameter"),
        pytest.param("/a/<int:id>/b", "/a/{id}/b", id="Flask converter"),
        pytest.param("/f/{rest:path}", "/f/*", id="Starlette path"),
        pytest.param("/f/<path:rest>", "/f/*", id="Flask path"),
        pytest.param("//", "/", id="only slashes"),
        pytest.param("/a//b", "/a/b", id="two slashes"),
        pytest.param("/a/../b", "/b", id="dots"),
        pytest.param("/a/./b", "/a/b", id="dot"),
        pytest.param("/a ", "/a", id="space at the end"),
        pytest.param("/a?b=1", "/a", id="query"),
        pytest.param("/a#b", "/a", id="fragment"),
        pytest.param("/a\n", "/a", id="newline"),
        pytest.param("/a\x00b", "/ab", id="NUL"),
        pytest.param("/caf%C3%A9", "/café", id="percent-encoded"),
    ],
)
def test_a_wrong_pattern_says_what_to_write_instead(pattern: str, better: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Route("GET", pattern)
    assert f"the pattern {pattern!r} " in str(error.value)
    assert f"write {better!r}" in str(error.value)


@pytest.mark.parametrize("pattern", ["", None, 5, b"/a", "/{id}/{id}", "/:id/{id}"])
def test_what_is_no_pattern_is_refused(pattern: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"path pattern is text|rename"):
        Route("GET", pattern)


def test_a_route_is_a_value() -> None:
    assert len({Route("get", "/a/"), Route("GET", "/a"), Route("GET", "/A")}) == 2


def test_what_is_said_of_get_holds_for_head() -> None:
    assert Route("GET", "/a").covers("HEAD")
    assert not Route("HEAD", "/a").covers("GET")
    assert not Route("POST", "/a").covers("HEAD")


@pytest.mark.parametrize("method", ["GET", "QUERY", "get", "PROPFIND", "X" * 4096, ""])
def test_attack_13_odd_methods_fall_under_a_star(method: str) -> None:
    assert Route("*", "/a").covers(method)
    assert Route("GET", "/a").covers(method) == (method.upper() == "GET")


def test_parameters_tell_where_they_stand() -> None:
    route = Route("*", "/orgs/{org}/users/:user/*")
    assert route.parameters == {"org": 2, "user": 4}
    path = canonical("//orgs/acme/users//7/keys/").split("/")
    assert [path[at] for at in route.parameters.values()] == ["acme", "7"]


# -- the grammar -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "hits", "misses"),
    [
        pytest.param("*", "/ /a /a/b", "", id="everything"),
        pytest.param("/*", "/ /a /a/b", "", id="everything below the root"),
        pytest.param("/", "/", "/a", id="root"),
        pytest.param("/api", "/api", "/ /api/x /apikeys /API", id="text"),
        pytest.param("/api/*", "/api /api/ /api/x /api/x/y", "/apikeys /ap /", id="all below"),
        pytest.param("/a/*/c", "/a/b/c", "/a/c /a/b /a/b/b/c", id="one segment within"),
        pytest.param("/a/:id", "/a/1 /a/*", "/a /a/1/2", id="colon"),
        pytest.param("/a/{id}", "/a/1 /a/{id}", "/a /a/1/2", id="braces"),
        pytest.param("/*/{id}/*", "/a/1 /a/1/2/3", "/a", id="mixed"),
        pytest.param("/v1/a:cancel", "/v1/a:cancel", "/v1/a", id="colon within text"),
    ],
)
def test_the_grammar(pattern: str, hits: str, misses: str) -> None:
    assert [path for path in hits.split() if not matches(pattern, path)] == []
    assert [path for path in misses.split() if matches(pattern, path)] == []


@pytest.mark.parametrize(
    ("patterns", "order"),
    [
        pytest.param(["*", "/*"], ["/*", "*"], id="star last"),
        pytest.param(["/a/*", "/a/{b}", "/a/b"], ["/a/b", "/a/{b}", "/a/*"], id="text, parameter, rest"),
        pytest.param(["/a/*", "/a/b/*"], ["/a/b/*", "/a/*"], id="longer first"),
        pytest.param(["/a/*", "/a"], ["/a", "/a/*"], id="itself before all below"),
        pytest.param(["/{x}/b", "/a/{x}"], ["/a/{x}", "/{x}/b"], id="left to right"),
    ],
)
def test_the_most_specific_pattern_comes_first(patterns: list[str], order: list[str]) -> None:
    assert [route.pattern for route in sorted(map(Route.parse, patterns), key=specific)] == order


def test_of_two_equal_patterns_the_one_with_a_method_is_more_specific() -> None:
    assert sorted([Route("*", "/a"), Route("GET", "/a")], key=specific)[0].method == "GET"


def test_u1_every_pattern_of_a_list_is_tried() -> None:
    both = table("GET /health", "GET /metrics")
    assert both.match("/health").entries == (0,)
    assert both.match("/metrics").entries == (1,)


def test_u2_the_order_of_patterns_changes_nothing() -> None:
    assert table("* /internal/*", "GET /health").match("/health").entries == (1,)
    assert table("GET /health", "* /internal/*").match("/health").entries == (0,)


def test_u3_every_construct_of_a_pattern_means_what_it_says() -> None:
    assert matches("/api/*/admin", "/api/x/admin")
    assert matches("/u/:id", "/u/1")
    assert matches("/u/{id}", "/u/1")
    assert matches("/api/*", "/api")
    assert not matches("/api/*", "/apikeys/secret")
    assert matches("/a/*", "/a/../secret")
    assert matches("/secret", "/a/../secret")


# -- canonical paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("", "/"),
        ("//", "/"),
        ("/a", "/a"),
        ("/a/", "/a"),
        ("/a//", "/a"),
        ("//a///b//", "/a/b"),
        ("/a\n", "/a"),
        ("/a\r\n", "/a"),
        ("/a\x00", "/a"),
        ("/a ", "/a"),
        ("/a/\n/ /", "/a"),
        ("\n", "/"),
        ("/a\x7f", "/a"),
        ("a/b", "/a/b"),
        ("*", "/*"),
        ("http://evil.test/admin", "/admin"),
        ("HTTPS://evil.test", "/"),
        ("http://evil.test//admin", "/admin"),
        ("/http://x", "/http:/x"),
        ("/a/../b", "/a/../b"),
        ("/a;x", "/a;x"),
        ("/a#b", "/a#b"),
        ("/a.", "/a."),
        ("/a b", "/a b"),
        ("/é", "/é"),
    ],
)
def test_a_path_has_one_canonical_form(path: str, expected: str) -> None:
    assert canonical(path) == expected


HOSTILE = st.text(st.sampled_from("ab./\\;#%: *\n\r\x00\x7fé") | st.characters(), max_size=40)


@given(HOSTILE)
def test_canonical_is_idempotent(path: str) -> None:
    once = canonical(path)
    assert canonical(once) == once
    assert once.startswith("/")
    assert "//" not in once
    assert once == "/" or once[-1] > " "


# -- what cannot be dodged ---------------------------------------------------------------------------------------------

DODGES = {
    "//admin": "attack_7 slashes in front",
    "/admin/": "attack_7 slash at the end",
    "/admin//": "attack_7 slashes at the end",
    "/x/../admin": "attack_8 %2e%2e",
    "/x/..//admin": "attack_8 %2e%2e%2f%2f",
    "/./admin": "attack_8 %2e",
    "/admin/.": "attack_8 %2e at the end",
    "/../admin": "attack_8 above the root",
    "/admin\n": "attack_9 %0a",
    "/admin\r": "attack_9 %0d",
    "/admin\x00": "attack_9 %00",
    "/admin ": "attack_9 %20",
    "/admin/\n": "attack_9 slash and %0a",
    "http://evil.test/admin": "attack_10 absolute-form",
    "http://evil.test//admin/": "attack_10 absolute-form with slashes",
}


@pytest.mark.parametrize("path", [pytest.param(path, id=attack) for path, attack in DODGES.items()])
def test_a_protected_path_stays_protected_and_is_never_exempt(path: str) -> None:
    assert matches("/admin", path)
    assert not exempt("/admin", path)
    assert not exempt("*", path)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/admin;x", id="attack_7 parameters of a segment"),
        pytest.param("/admin;x=1/y", id="attack_7 parameters, below"),
        pytest.param("/%61dmin", id="attack_8 double encoding"),
        pytest.param("/health#/admin", id="attack_10 fragment"),
        pytest.param("/ADMIN", id="attack_12 case"),
        pytest.param("/admın", id="attack_12 case folding"),
    ],
)
def test_what_frameworks_read_literally_is_another_path(path: str) -> None:
    assert not matches("/admin", path)
    assert not matches("/health", path)


def test_attack_8_a_decoded_slash_is_a_slash() -> None:
    assert not exempt("/health", "/health/../admin")
    assert matches("/admin", "/health/../admin")
    assert matches("/users/{id}/keys", "/users/a/keys")


@pytest.mark.parametrize("value", ["\n", " ", "\x00", "1\n", "a b"])
def test_attack_9_a_parameter_may_be_white_space(value: str) -> None:
    assert matches("/items/{id}", f"/items/{value}")
    assert matches("/items/{id}", f"//items/{value}")


@pytest.mark.parametrize(
    ("path", "root"),
    [
        pytest.param("/items", "/v1", id="plain"),
        pytest.param("/items", "/v1/", id="slash after the prefix"),
        pytest.param("//items", "/v1", id="slashes"),
    ],
)
def test_attack_11_patterns_hold_with_and_without_the_mount_prefix(path: str, root: str) -> None:
    found = RouteTable([Route("*", "/v1/items"), Route("*", "/items")], [template("/items")]).match(path, root)
    assert found.entries == (0, 1)
    assert found.templates == (0,)
    assert found.exact == ("//" not in path)


def test_attack_11_a_path_that_begins_like_its_mount_is_not_taken_for_the_rest_of_it() -> None:
    table = RouteTable([Route("GET", "/health"), Route("GET", "/api/api/health")])
    assert table.match("/api/health", "/api").entries == (1,)


@pytest.mark.parametrize("path", ["/a/shop/items", "/shopitems", "/a/b/shopitems", "/items/shop/items"])
def test_attack_11_a_prefix_in_the_middle_protects_what_follows_and_exempts_nothing(path: str) -> None:
    found = RouteTable([Route("*", "/items"), Route("*", path)]).match(path, "*/shop")
    assert (found.exact, found.entries) == (False, (0, 1))


def test_attack_11_a_prefix_ends_where_a_segment_ends() -> None:
    found = table("/items", "/2/items").match("/v12/items", "/v1")
    assert found.entries == ()
    assert table("/").match("/", "/v1") == (True, (0,), ())


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/a.b", "/axb"),
        ("/a+", "/aa"),
        ("/a|b", "/a"),
        ("/(a)", "/a"),
        ("/[ab]", "/a"),
        ("/a$", "/a"),
        ("/^a", "/a"),
        ("/a\\d", "/a1"),
    ],
)
def test_attack_12_regex_characters_are_text(pattern: str, path: str) -> None:
    assert not matches(pattern, path)
    assert matches(pattern, pattern)


def test_a_control_character_is_never_exempt() -> None:
    assert matches("/a/*", "/a/x\x00y")
    assert not exempt("/a/*", "/a/x\x00y")
    assert exempt("/a/*", "/a/x\u00a0y")


def test_a_name_that_begins_with_a_dot_is_no_dot_segment() -> None:
    assert exempt("/.well-known/*", "/.well-known/x")
    assert exempt("/a/*", "/a/...")
    assert not exempt("/a/*", "/a/..")


@given(
    st.lists(st.sampled_from(["a", "b", "é", "x y"]), min_size=1, max_size=4),
    st.lists(st.sampled_from(["/", "//", "/./", "/x/../", "/x//../"]), min_size=5, max_size=5),
    st.sampled_from(["", "http://evil.test", "ws://u:p@h:1"]),
    st.sampled_from(["", "/.", "/x/..", "/./x/../"]),
    st.lists(st.sampled_from(["/", "//", "\n", "\r\n", "\x00", " "]), max_size=3),
)
def test_no_decoration_takes_a_path_out_of_its_pattern(
    parts: list[str], between: list[str], origin: str, dots: str, junk: list[str]
) -> None:
    plain = "/" + "/".join(parts)
    path = origin + "".join(map("".join, zip(between, parts, strict=False))) + dots + "".join(junk)
    assert matches(plain, path)
    assert exempt(plain, path) == (path == plain)


@given(HOSTILE)
def test_only_the_path_itself_is_exempt(path: str) -> None:
    assert exempt("/a/b", path) == (path == "/a/b")
    match = table("*").match(path)
    assert match.entries == (0,)
    assert not match.exact or (canonical(path) == path and not {".", ".."} & set(path.split("/")))


# -- the table against a slow oracle -----------------------------------------------------------------------------------

PARTS = st.lists(st.sampled_from(["a", "b", "*", ":", "{}"]), max_size=4)
PATTERNS = st.builds(
    lambda parts, rest: (
        "/"
        + "/".join({":": f":p{at}", "{}": f"{{p{at}}}"}.get(part, part) for at, part in enumerate(parts))
        + ("/*" if rest and parts else "")
    ),
    PARTS,
    st.booleans(),
) | st.just("*")
PATHS = st.builds(
    lambda parts, end: "".join("/" + part for part in parts) + end or "/",
    st.lists(st.sampled_from(["a", "b", "c", "", ".", "..", "a;b", "a\n"]), max_size=5),
    st.sampled_from(["", "", "", "/", "\n"]),
)


def oracle(pattern: str, path: str) -> bool:
    """The documented grammar as one regular expression, asked about a canonical path."""
    if pattern == "*":
        return True
    parts = pattern[1:].split("/") if pattern != "/" else []
    rest = bool(parts) and parts[-1] == "*"
    regex = "".join("/" + ("[^/]+" if part[0] in "*:{" else re.escape(part)) for part in parts[: -1 if rest else None])
    return re.fullmatch(regex + ("(?:/.*)?" if rest else ""), path if path != "/" else "", re.DOTALL) is not None


@given(st.lists(PATTERNS, max_size=8), PATHS)
def test_matching_agrees_with_a_slow_oracle(patterns: list[str], path: str) -> None:
    found = table(*patterns).match(path)
    expected = tuple(at for at, pattern in enumerate(patterns) if oracle(pattern, canonical(path)))
    if found.exact:
        assert found.entries == expected
    else:
        assert set(found.entries) >= set(expected)


@given(st.lists(PATTERNS, max_size=8), PATHS, st.randoms(use_true_random=False))
def test_the_order_of_entries_is_irrelevant(patterns: list[str], path: str, shuffle: random.Random) -> None:
    moved = list(range(len(patterns)))
    shuffle.shuffle(moved)
    found = table(*patterns).match(path).entries
    other = table(*(patterns[at] for at in moved)).match(path).entries
    assert sorted(moved[at] for at in other) == list(found)


@given(HOSTILE)
def test_any_text_has_an_answer(path: str) -> None:
    own = [template("/a/{x}"), template("/{n:int}/b", "GET"), template("/{p:path}/z", newline=True)]
    found = RouteTable([Route("*", "/a/*"), Route("*", "/*/b")], own).match(path)
    assert list(found.entries) == sorted(set(found.entries))


def test_an_empty_table_knows_nothing() -> None:
    assert table().match("/a") == (True, (), ())
    assert table().match("//a\n") == (False, (), ())
    assert table().label(table().match("/a"), "GET") is None


def test_equal_answers_are_one_object_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    many = table("/a/{id}")
    assert many.match("/a/1") is many.match("/a/2")
    monkeypatch.setattr(routes, "_ANSWERS", 1)
    assert many.match("/b") == many.match("/b/c") == (True, (), ())
    assert many.match("/b") is not many.match("/b/c")


# -- cost, in steps of the interpreter ---------------------------------------------------------------------------------


def steps(work: Callable[[], object]) -> int:
    """Instructions that the module under test executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != routes.__file__:
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    for _ in range(2):  # code that runs traced for the first time is not counted in full
        count = 0
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(before)
    assert count
    return count


SIZES = (12_500, 25_000, 50_000, 100_000)
LONG = {
    "segments": lambda size: "/a" * (size // 2),
    "slashes": lambda size: "/" * size,
    "one segment": lambda size: "/" + "a" * size,
    "digits": lambda size: "/items/" + "1" * size,
    "dots": lambda size: "/.." * (size // 3),
    "single dots": lambda size: "/." * (size // 2),
    "white space": lambda size: "/a" + " \n" * (size // 2),
    "scheme": lambda size: "a" * size + "://",
    "matching prefix": lambda size: "/files/" + "x/edit/" * (size // 7),
}


@pytest.mark.parametrize("long", LONG)
def test_attack_16_a_path_of_100_kb_costs_linear_work_at_most(long: str) -> None:
    own = [template("/items/{n:int}"), template("/files/{p:path}/edit"), template("/{p:path}/x/{q:path}/y")]
    patterns = ["*", "/a/*", "/*/a/:b/{c}/*", "/{a}/{b}/{c}/{d}/e", "/.../x"]
    full = RouteTable([Route("*", pattern) for pattern in patterns], own)
    paths = [LONG[long](size) for size in SIZES]
    costs = [steps(lambda path=path: full.match(path)) for path in paths]  # type: ignore[misc]
    for smaller, larger in pairwise(costs):
        assert larger <= 2.1 * smaller + 100


@pytest.mark.parametrize("path", ["/api/v1/r7/42", "/api/v1/r7/42/more", "/nothing/at/all", "/api/v1/r7"])
def test_the_cost_of_a_match_does_not_depend_on_the_number_of_patterns(path: str) -> None:
    def cost(count: int) -> int:
        many = table(*(f"/api/v1/r{at}/{{id}}" for at in range(count)), *(f"/api/v2/r{at}/*" for at in range(count)))
        return steps(lambda: many.match(path))

    assert cost(10) == cost(100) == cost(1000)


def test_a_path_without_a_pattern_is_left_at_its_first_segment() -> None:
    short = table("/a/b/c/d/e/f/g/h/{i}")
    assert steps(lambda: short.match("/x" + "/a" * 50)) <= steps(lambda: short.match("/x/y"))


def test_converters_are_not_asked_about_endless_text() -> None:
    asked = RouteTable([], [template("/{p:path}/x/{q:path}/y"), template("/i/{n:int}")])
    assert asked.match("/" + "x/" * 1000 + "y").templates == (0,)
    assert asked.match("/" + "x/" * 50_000 + "y").templates == ()
    assert asked.match("/i/" + "1" * 50_000).templates == ()


# -- templates ---------------------------------------------------------------------------------------------------------


def test_a_template_is_compiled_by_segments() -> None:
    def compiled(path: str) -> Any:
        return template(path).segments

    assert compiled("/") == ()
    assert compiled("/a/{x}/b/") == ("a", Parameter("x"), "b")
    assert compiled("/{n:int}") == (Parameter("n", re.compile("(?:[0-9]+)")),)
    assert compiled("/v{x}.{y}") == (Parameter(None, re.compile(r"v(?:[^/]+)\.(?:[^/]+)")),)
    assert compiled("/f/{p:path}") == ("f", Rest())
    assert compiled("/f/{p:path}/edit") == ("f", Rest(re.compile("(?:.*)/edit")))
    assert template("/a/{x}/{n:int}/v{y}/{p:path}").parameters == {"x": 2, "n": 3}


def test_templates_are_told_in_the_order_of_trial() -> None:
    own = RouteTable([], [template("/u/{id}", "GET"), template("/u/me", "GET"), template("/u/{id}", "PUT")])
    assert own.match("/u/me").templates == (0, 1, 2)
    assert own.label(own.match("/u/me"), "GET") == "/u/{id}"
    own = RouteTable([], [template("/u/me", "GET"), template("/u/{id}", "PUT")])
    assert own.label(own.match("/u/me"), "GET") == "/u/me"
    assert own.label(own.match("/u/me"), "PUT") == "/u/{id}"
    assert own.label(own.match("/u/me"), "DELETE") == "/u/me"
    assert own.label(own.match("/x"), "GET") is None


@pytest.mark.parametrize("method", ["QUERY", "get", "X" * 4096, ""])
def test_attack_13_an_odd_method_has_the_label_of_its_path(method: str) -> None:
    own = RouteTable([], [template("/a", "GET", "HEAD"), template("/{x}", "POST")])
    assert own.label(own.match("/a"), method) == "/a"


def test_the_slash_at_the_end_chooses_between_templates_that_differ_in_it_alone() -> None:
    own = RouteTable([], [template("/a", "GET"), template("/a/", "GET"), template("/b/", "GET"), template("/c")])
    labels = {path: own.label(own.match(path), "GET") for path in ("/a", "/a/", "/b", "/b/", "/c/")}
    assert labels == {"/a": "/a", "/a/": "/a/", "/b": "/b/", "/b/": "/b/", "/c/": "/c"}


def test_a_mount_keeps_what_begins_like_it() -> None:
    inner = template("/m/a", "GET")
    mount = Template("/m/{path}", frozenset(), ("m", Rest()), slash=False, mounted=1)
    own = RouteTable([], [template("/m/{x}", "PUT"), inner, mount, template("/m/a", "POST"), template("/m/b")])
    assert own.label(own.match("/m/a"), "GET") == "/m/a"
    assert own.label(own.match("/m/a"), "POST") == "/m/a"
    assert own.label(own.match("/m/b"), "PUT") == "/m/{x}"
    assert own.label(own.match("/m/b"), "GET") == "/m/{path}"
    assert 3 not in own.match("/m/a").templates


@pytest.mark.parametrize(
    "path", ["//a", "/a//", "/a\x00", "http://h/a"], ids=["slashes", "slashes after", "NUL", "absolute"]
)
def test_what_the_framework_answers_with_404_keeps_a_bounded_label(path: str) -> None:
    own = RouteTable([], [template("/a"), template("/b")])
    assert own.label(own.match(path), "GET") == "/a"


def test_a_path_is_labelled_as_it_stands_before_any_other_form() -> None:
    own = RouteTable([], [template("/f/a"), template("/f/{p:path}")])
    assert own.label(own.match("/f//a"), "GET") == "/f/{p}"
    assert own.label(own.match("/f/x/../a"), "GET") == "/f/{p}"
    assert own.label(own.match("/f/a"), "GET") == "/f/a"


def test_attack_9_a_forgiven_newline_keeps_the_order_of_trial() -> None:
    own = RouteTable([], [template("/admin", newline=True), template("/{page}", newline=True)])
    assert own.label(own.match("/admin\n"), "GET") == "/admin"
    strict = RouteTable([], [template("/admin"), template("/{page}")])
    assert strict.label(strict.match("/admin\n"), "GET") == "/{page}"
