"""Runs the tests of the front with older frameworks: each file of requirements/matrix/ is laid over the environment."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "requirements/matrix").glob("*.txt"))
TESTS = [
    "tests/drivers",
    "tests/test_discovery.py",
    "tests/test_fastapi.py",
    "tests/test_flask.py",
    "tests/test_starlette.py",
]
NEWEST = "newest"
"""What the environment itself has, with nothing laid over it."""


def lay_over(folder: Path, requirements: Path) -> None:
    """Install *requirements* into *folder*, alone: what they need besides is in the environment."""
    if uv := shutil.which("uv"):
        pip = [uv, "pip", "install", "--quiet", "--python", sys.executable]
    else:
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", folder, "-r", requirements], check=True)


def run(name: str, arguments: list[str]) -> tuple[int, str]:
    """The exit code of the tests, and their last line."""
    with tempfile.TemporaryDirectory() as folder:
        if name != NEWEST:
            lay_over(Path(folder), ROOT / f"requirements/matrix/{name}.txt")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--quiet", "--numprocesses=auto", *TESTS, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
        )
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n")
    return done.returncode, lines[-1]


def main(*arguments: str) -> int:
    """`scripts/matrix [NAME ...] [arguments of pytest]`."""
    names = [file.stem for file in FILES] + [NEWEST]
    wanted = [name for name in arguments if name in names] or names
    rest = [argument for argument in arguments if argument not in names]
    failed = 0
    rows = []
    for name in wanted:
        began = time.monotonic()
        code, last = run(name, rest)
        failed += bool(code)
        rows.append(
            f"{name:<16} {'failed' if code else 'ok':<7} {time.monotonic() - began:4.0f} s   {last.strip('= ')}"
        )
    print(*rows, sep="\n")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
