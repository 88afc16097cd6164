"""A wrong option ends the start with a sentence that shows the right line; no server answers 500 in silence."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.scenarios.conftest import end, folder
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
    "wsgi, limit of nothing under gunicorn": (
        WSGI,
        'UsageMiddleware(app, policies=[Policy("p", limits=["0/minute"])])',
        GUNICORN,
        "not 0; to close a route",
    ),
    "wsgi, too late": (
        WSGI,
        'app.test_client().get("/"); UsageMiddleware(store="memory://")(app)',
        PYTHON,
        "has served its first request: call middleware(app) where the application is created",
    ),
}


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[dict[str, Program]]:
    """All of them at once, because they take their time to fail."""
    started = {
        name: Program(folder(tmp_path, name), f"{source}\n{line}", arguments)
        for name, (source, line, arguments, _) in WRONG.items()
    }
    yield started
    end(started.values())


def test_a_wrong_option_ends_the_start_and_is_explained(
    programs: dict[str, Program], subtests: pytest.Subtests
) -> None:
    for name, program in programs.items():
        sentence = WRONG[name][3]
        with subtests.test(name):
            assert program.wait() != 0
            assert "ConfigurationError" in program.output, program.output
            assert sentence in program.output
            assert ("Application startup failed" in program.output) is name.startswith("asgi")
