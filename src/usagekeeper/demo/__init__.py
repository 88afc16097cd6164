"""What `usagekeeper demo` runs: a sample API, clients that call it, and a table of what the keeper did with them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
LIMIT: Final = "6/6 seconds"
"""What each customer of the sample API may do."""
REPORT_COST: Final = 3


def store_url(folder: Path) -> str:
    """Where the records of a sample API with its files in *folder* are."""
    return f"sqlite:///{folder / 'usagekeeper.db'}"
