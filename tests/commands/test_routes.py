"""`routes`: what is told of every route and every pattern."""

import pytest

from tests.commands.apps import FASTAPI, FLASK, GOOD
from tests.commands.conftest import Project

BOTH = pytest.mark.parametrize("source", [FASTAPI, FLASK], ids=["fastapi", "flask"])


@BOTH
def test_every_route_is_told_with_its_policies(source: str, project: Project) -> None:
    project.write(source + GOOD)
    told = {
        row["route"]: (row["methods"], row["status"]) for row in project.json("routes", "--app", "shop:app")["routes"]
    }
    item = next(route for route in told if "items" in route)
    assert told == {
        item: (["GET"], "watched"),
        "/api/reports": (["POST"], "watched"),
        "/health": (["GET"], "whitelisted"),
    }


@BOTH
def test_a_route_without_a_limit_is_marked(source: str, project: Project) -> None:
    project.write(source + "app = make(policies=[Policy('items', routes=['GET /api/items/*'], limits=['5/minute'])])")
    lines = project.run("routes", "--app", "shop:app").stdout.splitlines()
    assert {line.split()[1] for line in lines if line.endswith("no limit")} == {"/api/reports", "/health"}


def test_a_pattern_without_a_route_is_told(project: Project) -> None:
    project.write(FASTAPI + "app = make(whitelist=['/healthz'], policies=[Policy('p', routes=['/api/*'])])")
    rows = project.json("routes", "--app", "shop:app")["patterns"]
    assert [(row["option"], row["pattern"], row["routes"]) for row in rows] == [
        ("whitelist", "/healthz", 0),
        ("p", "/api/*", 2),
    ]


def test_limits_and_who_is_counted_are_told(project: Project) -> None:
    project.write(FASTAPI + GOOD)
    assert project.json("routes", "--app", "shop:app")["policies"][0] == {
        "name": "customers",
        "limits": ["2/minute"],
        "identity": 'Header("X-Customer"), else ClientAddress()',
        "mode": "enforce",
    }


def test_routes_of_routers_and_mounts_are_among_them(project: Project) -> None:
    project.write(
        FASTAPI + "from fastapi import APIRouter; router = APIRouter()\n"
        "@router.get('/orders/{order}')\nasync def order(order: str): ...\n"
        "app = make(); app.include_router(router, prefix='/v1')\n"
        "sub = FastAPI(openapi_url=None); app.mount('/sub', sub)\n"
        "@sub.get('/inner')\nasync def inner(): ..."
    )
    routes = [row["route"] for row in project.json("routes", "--app", "shop:app")["routes"]]
    assert routes[-2:] == ["/v1/orders/{order}", "/sub/inner"]


def test_without_a_framework_the_patterns_are_told(project: Project) -> None:
    project.write("from usagekeeper import *; keeper = UsageKeeper(store='memory://', routes=['/api/*'])")
    shown = project.run("routes", "--app", "shop:keeper").stdout
    assert "tells no routes of its own" in shown
    assert "routes  /api/*" not in shown
    assert "* /api/*" in shown


def test_a_keeper_that_is_switched_off_is_told(project: Project) -> None:
    project.write(FASTAPI + "app = make(enabled=False)")
    assert project.run("routes", "--app", "shop:app").stdout.startswith("The keeper is switched off")


def test_a_route_with_control_characters_does_nothing_to_the_terminal(project: Project) -> None:
    project.write(FASTAPI + "app = make()\napp.get('/a\\x1b[2J\\u202e')(lambda: None)")
    shown = project.run("routes", "--app", "shop:app").stdout
    assert "/a\\x1b[2J\\u202e" in shown
    assert all(line.isprintable() for line in shown.splitlines())
