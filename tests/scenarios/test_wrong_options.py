"""A wrong option ends the start with a sentence that shows the right line; no server answers 500 in silence."""

from collections.abc import Iterator, Sequence

import pytest

from tests.scenarios.conftest import end
from tests.scenarios.servers import Program, gunicorn, uvicorn

ASGI = """
import os
from starlette.applications import Starlette
from usagekeeper import Policy
from usagekeeper.asgi import UsageMiddleware

app = Starlette()
"""
WSGI = """
from flask import Flask
from usagekeeper import Policy
from usagekeeper.flask import UsageMiddleware

app = Flask(__name__)
"""
NOBODY = """
import usagekeeper.counters.sqlite, usagekeeper.stores.sqlite  # while all files may still be read
if os.getuid() == 0: os.setuid(65534)  # who may write everywhere
"""
UVICORN = uvicorn()(0)
GUNICORN = gunicorn()(0)
PYTHON = ["served.py"]

# name: source, the last line, arguments of Python, what is said
WRONG: dict[str, tuple[str, str, Sequence[str], str]] = {
    "asgi, unknown option": (
        ASGI,
        "app.add_middleware(UsageMiddleware, polices=[])",
        UVICORN,
        "there is no option 'polices': did you mean 'policies'?",
    ),
    "asgi, wrong pattern": (
        ASGI,
        'app.add_middleware(UsageMiddleware, routes=["/api*"])',
        UVICORN,
        "the pattern '/api*' has 'api*', which is neither plain text nor a parameter: write '/api/*'",
    ),
    "asgi, limit of nothing": (
        ASGI,
        'app.add_middleware(UsageMiddleware, policies=[Policy("p", limits=["0/minute"])])',
        UVICORN,
        "not 0; to close a route, leave it out of the application or answer 403 there",
    ),
    "asgi, an instance": (
        ASGI,
        'app.add_middleware(UsageMiddleware(app, store="memory://"))',
        UVICORN,
        "write app.add_middleware(UsageMiddleware, routes=[...], policies=[...])",
    ),
    "asgi, missing folder": (
        ASGI,
        'app.add_middleware(UsageMiddleware, store="sqlite:///nowhere/usage.db")',
        UVICORN,
        "/nowhere. Make it, or name a file in another folder with store=",
    ),
    "asgi, unwritable folder": (
        ASGI,
        f'{NOBODY}\napp.add_middleware(UsageMiddleware, store="sqlite:////usage.db")',
        UVICORN,
        "/ cannot be written",
    ),
    "asgi, no list": (
        ASGI,
        'app.add_middleware(UsageMiddleware, policies=Policy("p"))',
        UVICORN,
        'this is a list, as in policies=[Policy("default", limits=["5/minute"])]',
    ),
    "wsgi, limit of nothing under gunicorn": (
        WSGI,
        'UsageMiddleware(app, policies=[Policy("p", limits=["0/minute"])])',
        GUNICORN,
        "not 0; to close a route",
    ),
    "wsgi, unknown option": (
        WSGI,
        "UsageMiddleware(app, polices=[])",
        PYTHON,
        "there is no option 'polices': did you mean 'policies'?",
    ),
    "wsgi, too late": (
        WSGI,
        'app.test_client().get("/"); UsageMiddleware(store="memory://")(app)',
        PYTHON,
        "has served its first request: call middleware(app) where the application is created",
    ),
    "wsgi, missing folder": (
        WSGI,
        'UsageMiddleware(app, store="sqlite:///nowhere/usage.db")',
        PYTHON,
        "Make it, or name a file in another folder with store=",
    ),
    "wsgi, no Flask application": (
        WSGI,
        'UsageMiddleware(store="memory://")(app.wsgi_app)',
        PYTHON,
        "for another WSGI callable write app = usagekeeper.wsgi.UsageMiddleware(app, policies=[...])",
    ),
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Program]]:
    """All of them, because they take their time to fail."""
    started = {
        name: Program(tmp_path_factory.mktemp("wrong"), f"{source}\n{line}", arguments)
        for name, (source, line, arguments, _) in WRONG.items()
    }
    yield started
    end(started.values())


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option_ends_the_start_and_is_explained(programs: dict[str, Program], name: str) -> None:
    program, sentence = programs[name], WRONG[name][3]
    assert program.wait() != 0
    assert "ConfigurationError" in program.output, program.output
    assert sentence in program.output
    assert ("Application startup failed" in program.output) is name.startswith("asgi")
