"""The two drivers, behind one fixture: what holds for one holds for the other."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers import AsgiCall, Call, WsgiCall


@pytest.fixture(params=[AsgiCall, WsgiCall], ids=["asgi", "wsgi"])
def call(request: pytest.FixtureRequest) -> Iterator[Call[Any]]:
    """The same application in either protocol."""
    one: Call[Any] = request.param()
    yield one
    one.close()


@pytest.fixture
def asgi() -> Iterator[AsgiCall]:
    """For what only ASGI has."""
    one = AsgiCall()
    yield one
    one.close()


@pytest.fixture
def wsgi() -> Iterator[WsgiCall]:
    """For what only WSGI has."""
    one = WsgiCall()
    yield one
    one.close()
