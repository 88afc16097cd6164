"""What holds for every test."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.helpers import close_loops
from usagekeeper.usage import current

# How long an example takes says nothing on a busy machine; time is measured in benchmarks/. Forty examples each run of
# some two hundred properties; a hunt takes more: HYPOTHESIS_PROFILE=hunt.
settings.register_profile("usagekeeper", deadline=None, max_examples=40)
settings.register_profile("hunt", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usagekeeper"))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A response that a test never closes is not the next test's request, and its event loop is nobody's garbage."""
    current.set(None)
    yield
    close_loops()
