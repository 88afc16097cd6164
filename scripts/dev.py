"""Runs one job of this repository in an environment of its own, made on the first run.

Nothing has to be installed before: the standard library is enough, uv is used if it is on PATH.
"""

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
if sys.version_info < (3, 11):  # noqa: UP036  a Python that is too old has to say so itself
    sys.exit(f"Python 3.11 or newer is needed, this is {MINOR}.")

ROOT = Path(__file__).resolve().parent.parent

# job: its file in requirements/, and the commands of Python; arguments go to the last one
JOBS = {
    "demo": ("demo", ["-m usagekeeper demo"]),
    "test": ("test", ["-m pytest --numprocesses=auto"]),
    "coverage": ("test", ["-m pytest --numprocesses=auto --cov --cov-report=term"]),  # takes three times as long
    "check": (
        "test",
        [
            "-m ruff check",
            "-m ruff format --check",
            "-m mypy",
            "-m pytest --quiet tests/test_layers.py",
        ],
    ),
    "soak": ("test", ["-m benchmarks.soak"]),
    "matrix": ("test", ["scripts/matrix.py"]),  # two to four minutes
    "bench": ("bench", ["-m benchmarks.{}"]),
}


def environment() -> Path:
    """`.venv`, or `.venv-3.12` where `.venv` belongs to another minor version."""
    config = ROOT / ".venv/pyvenv.cfg"
    settings = config.read_text() if config.exists() else ""
    version = re.search(r"^version\w* *= *(\d+\.\d+)", settings, re.MULTILINE)
    return ROOT / (f".venv-{MINOR}" if version and version[1] != MINOR else ".venv")


def install(venv: Path, python: Path, requirements: Path) -> None:
    """Bring *venv* to what *requirements* pins; the stamp it leaves spares the next run this."""
    sources = [bytes(ROOT), (ROOT / "pyproject.toml").read_bytes(), requirements.read_bytes()]
    wanted = hashlib.sha256(b"\0".join(sources)).hexdigest()
    stamp = venv / f"installed-{requirements.stem}"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return

    print(f"Installing {requirements.relative_to(ROOT)} into {venv.name} ...", file=sys.stderr)
    if uv := shutil.which("uv"):
        if not python.exists():
            run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, venv)
        pip = [uv, "pip", "install", "--quiet", "--python", python]
    elif importlib.util.find_spec("ensurepip"):
        if not python.exists():
            run(sys.executable, "-m", "venv", "--clear", "--without-pip", venv)
        # again each time: an environment of uv's, or one whose making was cut short, has no pip
        run(python, "-m", "ensurepip", stdout=subprocess.DEVNULL)
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    else:
        sys.exit("This Python cannot make environments: install its venv package, or uv.")
    run(*pip, "--require-hashes", "-r", requirements)
    run(*pip, "--no-deps", "--no-build-isolation", "-e", ROOT)
    stamp.write_text(wanted)


def run(*command: str | Path, stdout: int | None = None) -> None:
    if code := subprocess.call(command, cwd=ROOT, stdout=stdout):
        sys.exit(f"{' '.join(map(str, command))} ended with {code}.")


def main(job: str = "", *arguments: str) -> None:
    if job not in JOBS:
        sys.exit(f"usage: scripts/dev.py {'|'.join(JOBS)} [arguments]")
    if job == "bench" and not arguments:
        sys.exit("usage: scripts/bench NAME [arguments]")
    name, commands = JOBS[job]
    if job == "bench":
        commands = [command.format(arguments[0]) for command in commands]
        arguments = arguments[1:]

    venv = environment()
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install(venv, python, ROOT / f"requirements/{name}.txt")
    os.chdir(ROOT)
    *before, last = [[str(python), *command.split()] for command in commands]
    last += arguments
    if failed := [command for command in before if subprocess.call(command)]:
        subprocess.call(last)
        sys.exit("\n".join(f"failed: {shlex.join(command[1:])}" for command in failed))
    os.execv(last[0], last)  # alone with the terminal, so that ^C is the job's own


if __name__ == "__main__":
    main(*sys.argv[1:])
