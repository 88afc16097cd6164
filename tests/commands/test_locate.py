"""Finding the application by its name, and what is said when it is not there."""

import sys
from pathlib import Path

import pytest

from tests.commands.apps import FASTAPI, FLASK
from tests.commands.conftest import Project

FORMS = {
    "fastapi": (FASTAPI + "app = make()", "shop:app"),
    "flask": (FLASK + "app = make()", "shop:app"),
    "factory": (FASTAPI, "shop:make()"),
    "attribute-of-an-attribute": (FLASK + "class served: app = make()", "shop:served.app"),
    "starlette": (
        "from starlette.applications import Starlette; from starlette.middleware import Middleware\n"
        "from usagekeeper.asgi import UsageMiddleware\n"
        "app = Starlette(middleware=[Middleware(UsageMiddleware, store='memory://')])",
        "shop:app",
    ),
    "around-fastapi": (
        "from fastapi import FastAPI; from usagekeeper.asgi import UsageMiddleware\n"
        "app = UsageMiddleware(FastAPI(), store='memory://')",
        "shop:app",
    ),
    "around-wsgi": (
        "from usagekeeper.wsgi import UsageMiddleware\napp = UsageMiddleware(lambda environ, start: [], store='memory://')",
        "shop:app",
    ),
    "inside-another-layer": (
        FASTAPI + "class Outer:\n    def __init__(self, app): self.app = app\n"
        "    async def __call__(self, scope, receive, send): ...\napp = Outer(make())",
        "shop:app",
    ),
    "keeper": ("from usagekeeper import UsageKeeper; keeper = UsageKeeper(store='memory://')", "shop:keeper"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_application_is_found(form: str, project: Project) -> None:
    source, name = FORMS[form]
    project.write(source)
    ended = project.run("routes", "--app", name)
    assert (ended.exit_code, ended.stderr) == (0, "")


def test_the_name_may_stand_in_the_environment(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write(FASTAPI)
    monkeypatch.setenv("USAGEKEEPER_APP", "shop:make()")
    assert project.json("routes")["app"] == "shop:make()"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        pytest.param("shop", "'shop' is no name of an application: write \"module:app\"", id="no-colon"),
        pytest.param("shopp:app", "there is no module 'shopp' in ", id="no-module"),
        pytest.param("shop.inner:app", "there is no module 'shop.inner'", id="no-package"),
        pytest.param("shop:ap", "'shop' has no 'ap': did you mean 'app'?", id="no-attribute"),
        pytest.param("shop:x.y", "'shop' has no 'y': name the application", id="no-inner-attribute"),
        pytest.param("shop:make", 'makes an application: write --app "shop:make()"', id="factory-without-a-call"),
        pytest.param("shop:x()", "'shop:x()' calls what is no function but a int", id="no-factory"),
        pytest.param("shop:broken()", "made no application: ZeroDivisionError: division by zero", id="broken-factory"),
        pytest.param("shop:bare", "add app.add_middleware(UsageMiddleware, policies=[...])", id="no-middleware"),
        pytest.param("shop:flask", "add UsageMiddleware(app, policies=[...])", id="flask-without-it"),
        pytest.param("shop:x", "is a int and no application, middleware or UsageKeeper", id="no-application"),
        pytest.param("shop:outer", "only in what is mounted at '/sub'", id="only-in-a-mount"),
        pytest.param("shop:usage", "is the UsageMiddleware and no application: name the Flask", id="extension"),
        pytest.param("raising:app", "'raising' cannot be imported: ValueError: a\\x1b[2Jb", id="raises-on-import"),
        pytest.param("needing:app", "needs 'redis_of_nobody', which is not installed", id="needs-another"),
    ],
)
def test_what_cannot_be_found_ends_with_2_and_a_sentence(name: str, sentence: str, project: Project) -> None:
    project.write(
        FASTAPI + "app = make(); x = 1; bare = FastAPI(); outer = FastAPI(); outer.mount('/sub', app)\n"
        "def broken(): 1 / 0\n"
        "from flask import Flask; import usagekeeper.flask\n"
        "flask = Flask('shop'); usage = usagekeeper.flask.UsageMiddleware(Flask('x'), store='memory://')"
    )
    project.write("raise ValueError('a\\x1b[2Jb')", "raising")
    project.write("import redis_of_nobody", "needing")
    ended = project.run("routes", "--app", name)
    assert ended.exit_code == 2
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_without_a_name_it_is_asked_for(project: Project) -> None:
    ended = project.run("routes")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "Write --app module:app, or set USAGEKEEPER_APP=module:app" in ended.stderr


def test_a_wrong_option_of_the_middleware_is_told(project: Project) -> None:
    project.write(FASTAPI + "app = make(polices=[])")
    ended = project.run("routes", "--app", "shop:app")
    assert (ended.exit_code, "did you mean 'policies'?" in ended.stderr) == (2, True)


@pytest.mark.parametrize("source", [FASTAPI, FLASK], ids=["fastapi", "flask"])
@pytest.mark.parametrize("command", [["routes"], ["check", "GET", "/api/items/1"], ["doctor"]], ids=lambda one: one[0])
def test_looking_makes_no_file(source: str, command: list[str], project: Project, tmp_path: Path) -> None:
    project.write(source + "app = make(policies=[Policy('p', limits=['5/minute'])])")
    assert project.run(*command, "--app", "shop:app").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["shop.py"]


def test_what_an_application_prints_is_no_part_of_the_answer(project: Project) -> None:
    project.write("print('hello')\n" + FASTAPI + "app = make()")
    ended = project.run("routes", "--app", "shop:app", "--json")
    assert (ended.stdout[0], ended.stderr) == ("{", "hello\n")


def test_the_current_folder_is_searched(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(tmp_path)])
    project.write(FASTAPI + "app = make()")
    assert project.run("routes", "--app", "shop:app").exit_code == 0
