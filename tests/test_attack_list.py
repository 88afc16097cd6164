"""Every attack that the package promises to withstand has a test: `pytest -k attack_7` finds it, as `attack_clock`."""

import re
from pathlib import Path

WITHSTOOD = {str(number) for number in (*range(1, 15), *range(16, 19), *range(20, 29), 30, 33, 34)}
ALSO = {"clock", "fork", "name", "preflight", "twice"}
LIVE = {str(number) for number in (1, 2, 5, 7, 8, 9, 10, 11, 12, 13, 14, 18, 24)}


def test_every_attack_has_a_test_and_those_by_path_one_on_a_live_server() -> None:
    tests = Path(__file__).parent
    named = {word for path in tests.rglob("test_*.py") for word in re.findall(r"attack_(\w+?)_", path.read_text())}
    live = "".join(path.read_text() for path in tests.glob("scenarios/test_*.py"))
    numbers = ",".join(re.findall(r"@against\((.+)\)", live) + re.findall(r"attack_(\d+)_live", live))
    assert named >= WITHSTOOD | ALSO
    assert {*re.findall(r"\d+", numbers)} >= LIVE
