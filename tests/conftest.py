"""What holds for every test."""

import os

import pytest
from hypothesis import settings

from usagekeeper.usage import current

# How long an example takes says nothing on a busy machine; time is measured in benchmarks/. Forty examples each run of
# some two hundred properties; a hunt takes more: HYPOTHESIS_PROFILE=hunt.
settings.register_profile("usagekeeper", deadline=None, max_examples=40)
settings.register_profile("hunt", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usagekeeper"))


@pytest.fixture(autouse=True)
def nobody_is_served() -> None:
    """A response that a test never closes is not the next test's request."""
    current.set(None)
