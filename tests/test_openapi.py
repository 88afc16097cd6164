"""The OpenAPI document: what the rules add, where, and what they leave as it was."""

from collections.abc import Iterator
from typing import Any, Unpack

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.openapi.models import OpenAPI
from pydantic import BaseModel

from tests.tokens import by_key
from usagekeeper import ConfigurationError, Everyone, FirstOf, Header, Policy, UsageKeeper
from usagekeeper.asgi import UsageMiddleware
from usagekeeper.config import Options
from usagekeeper.fastapi import document

ITEMS = Policy("items", routes=["/api/items/*"], identity=Header("X-Customer"), limits=["5/minute", "100/day"])
IETF = {"RateLimit-Policy", "RateLimit"}
LEGACY = {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}
PROBLEM = "application/problem+json"


class Item(BaseModel):
    name: str
    size: int = 1


def build(**more: Any) -> FastAPI:
    app = FastAPI(**more)
    router = APIRouter(prefix="/items")

    @router.get("/{item_id}")
    async def read(item_id: int) -> Item:
        return Item(name=str(item_id))

    @router.post("", status_code=201, responses={429: {"description": "ours", "content": {"text/plain": {}}}})
    async def make(item: Item) -> Item:
        return item

    @router.delete("/{item_id}", status_code=204)
    async def remove(item_id: int) -> None: ...

    @app.get("/free")
    async def free() -> str:
        return "free"

    app.include_router(router, prefix="/api")
    return app


def told(app: FastAPI | None = None, **options: Unpack[Options]) -> dict[str, Any]:
    """The document of an application behind these rules, valid."""
    app = app or build()
    app.add_middleware(UsageMiddleware, **{"store": "memory://", "policies": [ITEMS], **options})  # type: ignore[arg-type]
    document(app)
    schema = app.openapi()
    OpenAPI.model_validate(schema)
    assert missing(schema) == []
    return schema


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (value["$ref"] for key in value if key == "$ref")
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from references(one)


def missing(schema: dict[str, Any]) -> list[str]:
    """References that lead nowhere."""
    found = []
    for reference in references(schema):
        at: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            at = at.get(part, {})
        if not at:
            found.append(reference)
    return found


def responses(schema: dict[str, Any], method: str = "get", path: str = "/api/items/{item_id}") -> dict[str, Any]:
    found: dict[str, Any] = schema["paths"][path][method]["responses"]
    return found


def test_a_covered_operation_tells_of_429_with_a_problem_and_headers() -> None:
    refused = responses(told())["429"]
    assert refused["description"] == "A limit is used up: items-minute, items-day."
    assert refused["content"][PROBLEM]["schema"] == {"$ref": "#/components/schemas/UsageProblem"}
    assert refused["content"][PROBLEM]["example"]["violated-policies"] == ["items-minute"]
    assert set(refused["headers"]) == IETF | LEGACY | {"Retry-After"}


def test_a_success_has_the_headers_but_no_retry_after() -> None:
    schema = told()
    assert set(responses(schema)["200"]["headers"]) == IETF | LEGACY
    assert set(responses(schema, "delete")["204"]["headers"]) == IETF | LEGACY
    assert "headers" not in responses(schema)["422"]


def test_an_operation_that_no_policy_covers_is_untouched() -> None:
    assert told()["paths"]["/free"] == build().openapi()["paths"]["/free"]


@pytest.mark.parametrize(
    ("style", "names"), [("both", IETF | LEGACY), ("ietf", IETF), ("legacy", LEGACY), ("none", set())]
)
def test_the_style_of_headers_is_respected(style: Any, names: set[str]) -> None:
    schema = told(headers=style)
    assert set(responses(schema)["200"].get("headers", {})) == names
    assert set(responses(schema)["429"]["headers"]) == names | {"Retry-After"}
    assert set(schema["components"]["headers"]) == names | {"Retry-After"}


@pytest.mark.parametrize(
    "options",
    [
        {"whitelist": ["/api/items/*"]},
        {"whitelist": ["GET /api/items/{id}"]},
        {"routes": ["/free"], "policies": [Policy("free", routes=["/free"], limits=["1/day"])]},
        {"policies": [Policy("p", routes=["POST /api/items/*"], limits=["5/minute"])]},
        {"policies": []},
        {"enabled": False},
    ],
    ids=str,
)
def test_what_is_exempt_unwatched_or_of_another_method_is_untouched(options: Any) -> None:
    assert responses(told(**options)) == responses(build().openapi())


@pytest.mark.parametrize(
    ("policy", "statuses"),
    [
        ({}, "200 422 429"),
        ({"on_missing_identity": "reject"}, "200 401 422 429"),
        ({"on_missing_identity": "reject", "limits": []}, "200 401 422"),
        ({"on_missing_identity": "reject", "mode": "shadow"}, "200 422"),
        ({"identity": by_key()}, "200 401 422 429"),
        ({"identity": FirstOf(by_key(), Header("X-Customer"))}, "200 401 422 429"),
        ({"on_outage": "deny"}, "200 422 429 503"),
        ({"on_outage": "deny", "mode": "soft"}, "200 422"),
        ({"mode": "soft"}, "200 422"),
        ({"limits": []}, "200 422"),
    ],
    ids=str,
)
def test_a_refusal_is_told_only_where_it_can_happen(policy: dict[str, Any], statuses: str) -> None:
    given: dict[str, Any] = {"identity": Header("X-Customer"), "limits": ["5/minute"], **policy}
    schema = told(policies=[Policy("p", routes=["/api/*"], **given)])
    assert sorted(responses(schema)) == statuses.split()


def test_soft_limits_are_in_the_headers_and_shadow_ones_are_not() -> None:
    for mode, names in (("soft", IETF | LEGACY), ("shadow", set())):
        schema = told(policies=[Policy("p", limits=["5/minute"], mode=mode)])  # type: ignore[arg-type]
        assert set(responses(schema)["200"].get("headers", {})) == names


def test_what_the_application_says_of_a_response_is_kept() -> None:
    refused = responses(told(), "post", "/api/items")["429"]
    assert (refused["description"], refused["content"]) == ("ours", {"text/plain": {}})
    assert "Retry-After" in refused["headers"]


def test_bodies_of_another_form_are_not_described() -> None:
    schema = told(on_refusal=lambda decision: {"error": decision.reason})
    assert "content" not in responses(schema)["429"]
    assert "UsageProblem" not in schema["components"]["schemas"]


def test_documenting_twice_is_documenting_once_and_the_last_rules_hold() -> None:
    app = build()
    first = told(app)
    document(app)
    assert app.openapi() == first
    document(app, UsageKeeper(store="memory://", policies=[Policy("all", identity=Everyone(), limits=["1/day"])]))
    assert responses(app.openapi())["429"]["description"] == "A limit is used up: all-day."
    assert "429" in responses(app.openapi(), path="/free")


def test_a_document_of_the_applications_own_is_extended_and_never_changed() -> None:
    app = build()
    own = {**app.openapi(), "x-own": True}
    app.openapi = lambda: own  # type: ignore[method-assign]
    schema = told(app)
    assert schema["x-own"] is True
    assert "429" in responses(schema)
    assert "429" not in responses(own)


def test_routes_added_later_are_told_too() -> None:
    app = build()
    told(app)
    later = APIRouter()
    later.add_api_route("/api/items/{item_id}/parts", lambda: "parts")
    app.include_router(later)
    app.openapi_schema = None
    assert "429" in responses(app.openapi(), path="/api/items/{item_id}/parts")


@pytest.mark.parametrize("separate", [True, False])
def test_schemas_of_models_are_as_they_were(separate: bool) -> None:
    plain = build(separate_input_output_schemas=separate).openapi()["components"]["schemas"]
    added = told(build(separate_input_output_schemas=separate))["components"]["schemas"]
    assert {name: added[name] for name in plain} == plain
    assert set(added) - set(plain) == {"UsageProblem"}


def test_an_application_below_a_prefix_is_told_with_patterns_that_hold_it() -> None:
    app = build()
    app.root_path = "/shop"
    schema = told(app, policies=[Policy("p", routes=["/shop/api/*"], limits=["5/minute"])])
    assert "429" in responses(schema)


def test_the_rules_are_found_in_a_keeper_of_the_middleware() -> None:
    app = build()
    keeper = UsageKeeper(store="memory://", policies=[ITEMS])
    app.add_middleware(UsageMiddleware, keeper=keeper)
    document(app)
    assert "429" in responses(app.openapi())


def test_an_application_without_the_middleware_is_told_what_to_write() -> None:
    with pytest.raises(ConfigurationError, match=r"after app.add_middleware.* or write document\(app, keeper\)"):
        document(build())


@pytest.mark.parametrize("wrong", [None, 5, UsageMiddleware])
def test_anything_but_an_application_is_told_what_to_write(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"takes a FastAPI application.* write document\(app, keeper\)"):
        document(wrong)


def test_anything_but_a_keeper_is_told() -> None:
    with pytest.raises(ConfigurationError, match="keeper= is a UsageKeeper, not 'memory://'"):
        document(build(), "memory://")  # type: ignore[arg-type]
