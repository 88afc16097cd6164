"""What holds for every test."""

from hypothesis import settings

# How long an example takes says nothing on a busy machine; time is measured in benchmarks/.
settings.register_profile("usagekeeper", deadline=None)
settings.load_profile("usagekeeper")
