"""`doctor`: every code is provoked by one fault, and a good application is left in peace."""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.commands.apps import FASTAPI, FLASK, GOOD
from tests.commands.conftest import Project
from usagekeeper.doctor import places
from usagekeeper.doctor.codes import CODES
from usagekeeper.records import UsageRecord
from usagekeeper.stores.sqlite import SqliteStore
from usagekeeper.testing.store_suite import make_record

ROOT = Path(__file__).parent.parent.parent
BOTH = pytest.mark.parametrize("source", [FASTAPI, FLASK], ids=["fastapi", "flask"])
NOW = 1_800_000_000


def found(project: Project, *options: str, app: str = "shop:app") -> list[Any]:
    told: list[Any] = project.json("doctor", "--app", app, *options)["findings"]
    return told


def codes(project: Project, *options: str) -> list[str]:
    return [one["code"] for one in found(project, *options)]


def good(more: str, source: str = FASTAPI) -> str:
    return source + GOOD.replace("make(", f"make({more},")


class Fault(NamedTuple):
    source: str
    options: Sequence[str] = ()
    environ: dict[str, str] = {}  # noqa: RUF012
    also: Sequence[str] = ()
    """Codes that come with it."""


KEEPER_OF_ITS_OWN = "UsageMiddleware, store='memory://', policies=[Policy('address', limits=['300/minute'])]"
FAULTS = {
    "UK101": [
        Fault(good("headers='old'")),
        Fault(FASTAPI + "app = FastAPI(); app.add_middleware(UsageMiddleware(app, store='memory://'))"),
        Fault(
            FASTAPI + "import usagekeeper.wsgi\napp = FastAPI(); app.add_middleware(usagekeeper.wsgi.UsageMiddleware)"
        ),
        Fault(
            FASTAPI + "import usagekeeper.flask\napp = FastAPI(); app.add_middleware(usagekeeper.flask.UsageMiddleware)"
        ),
    ],
    "UK102": [Fault("import redis_of_nobody")],
    "UK103": [
        Fault(FASTAPI + GOOD + f"app.add_middleware({KEEPER_OF_ITS_OWN})", ["--workers", "1"]),
        Fault(
            FASTAPI + GOOD + f"sub = FastAPI(openapi_url=None); sub.add_middleware({KEEPER_OF_ITS_OWN})\n"
            "app.mount('/sub', sub)"
        ),
        Fault(
            FLASK + GOOD + "import usagekeeper.wsgi\n"
            "app = usagekeeper.wsgi.UsageMiddleware(app, store='memory://', policies=[Policy('a', limits=['3/hour'])])",
            ["--workers", "1"],
        ),
    ],
    "UK104": [
        Fault(
            FASTAPI + GOOD + "from starlette.middleware.trustedhost import TrustedHostMiddleware\n"
            "app.add_middleware(TrustedHostMiddleware, allowed_hosts=['*'])"
        )
    ],
    "UK105": [
        Fault(
            "from starlette.middleware import Middleware; from starlette.middleware.cors import CORSMiddleware\n"
            + FASTAPI.replace(
                "FastAPI(openapi_url=None)", "FastAPI(openapi_url=None, middleware=[Middleware(CORSMiddleware)])"
            )
            + GOOD
        )
    ],
    "UK106": [Fault(good("enabled=False")), Fault(good("enabled=False", FLASK))],
    "UK201": [
        Fault(good("trusted_proxies=['0.0.0.0/0']", FLASK)),
        Fault(good("trusted_proxies=['10.0.0.0/8', '::/0']", FLASK)),
    ],
    "UK202": [
        Fault(good("trusted_proxies=1")),
        Fault(good("trusted_proxies=['10.0.0.0/8']"), environ={"FORWARDED_ALLOW_IPS": "10.0.0.2"}),
        Fault(good("trusted_proxies=1"), ["--forwarded-allow-ips", "10.0.0.2"]),
        Fault(
            good("trusted_proxies=1", FLASK)
            + "from werkzeug.middleware.proxy_fix import ProxyFix; app.wsgi_app = ProxyFix(app.wsgi_app)"
        ),
    ],
    "UK203": [
        Fault(FASTAPI + GOOD, environ={"FORWARDED_ALLOW_IPS": "*"}),
        Fault(FASTAPI + GOOD, environ={"UVICORN_FORWARDED_ALLOW_IPS": "10.0.0.1,0.0.0.0/0"}),
        Fault(FASTAPI + GOOD, environ={"GUNICORN_CMD_ARGS": "--forwarded-allow-ips='*' -w 2"}),
        Fault(FASTAPI + GOOD, ["--forwarded-allow-ips", "*"]),
    ],
    "UK205": [
        Fault(source + f"app = make(policies=[Policy('p', identity={identity}, limits=['5/minute']){more}])")
        for source, identity, more in (
            (FASTAPI, "Header('X')", ""),
            (FLASK, "FirstOf(Query('q'), ClientAddress())", ""),
            (FLASK, "Cookie('c')", ", Policy('a', limits=['9/minute'], mode='shadow')"),
            (FASTAPI, "Body('b')", ", Policy('a', routes=['GET *'], limits=['9/minute'])"),
        )
    ],
    "UK301": [Fault(FASTAPI + "app = make(policies=[Policy('p', routes=['/api/*'], limits=['5/minute'])])")],
    "UK302": [
        Fault(good("routes=['/api/*', '/health', '/apix']")),
        Fault(FLASK + "app = make(whitelist=['POST /health'], policies=[Policy('p', limits=['5/minute'])])"),
    ],
    "UK303": [
        Fault(FASTAPI + "app = make(routes=['/api/*'], policies=[Policy('p', limits=['5/minute'])])"),
    ],
    "UK304": [Fault(FASTAPI + "app = make()"), Fault(FLASK + "app = make(policies=[Policy('p')])")],
    "UK305": [
        Fault(FASTAPI + "app = make(policies=[Policy('p', limits=['300/minute', '5/second'], cost=6)])"),
        Fault(FLASK + "app = make(policies=[Policy('p', limits=[Rate(5, 'minute', cost=6)])])"),
    ],
    "UK401": [
        Fault(good("counters='memory://'"), ["--workers", "2"]),
        Fault(good("counters='memory://'"), environ={"WEB_CONCURRENCY": "4"}),
        Fault(good("counters='memory://'", FLASK), environ={"GUNICORN_CMD_ARGS": "--workers=4"}),
        Fault(good("counters='memory://'", FLASK), environ={"GUNICORN_CMD_ARGS": "-w 4"}),
        Fault(good("counters='memory://'", FLASK), environ={"GUNICORN_CMD_ARGS": "-w4 --threads 2"}),
    ],
    "UK402": [Fault(good("store='memory://'"), ["--workers", "2"], also=["UK401"])],
    "UK403": [Fault(good("counters='sqlite:///foreign.db'"))],
    "UK404": [Fault(good("store='sqlite:///foreign.db', counters='memory://'"), ["--workers", "1"])],
    "UK408": [Fault(good("counters='memory://'", source)) for source in (FASTAPI, FLASK)],
}


@pytest.mark.parametrize(
    ("code", "fault"),
    [pytest.param(code, one, id=f"{code}-{at}") for code, ones in FAULTS.items() for at, one in enumerate(ones)],
)
def test_a_fault_is_found_and_nothing_else(
    code: str, fault: Fault, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign.db").write_bytes(b"SQLite format 4" * 100)
    project.write(fault.source)
    for name, value in fault.environ.items():
        monkeypatch.setenv(name, value)
    assert codes(project, *fault.options) == [*fault.also, code]
    ended = project.run("doctor", "--app", "shop:app", *fault.options)
    assert ended.exit_code == (CODES[code].severity == "error" or bool(fault.also))


@BOTH
@pytest.mark.parametrize(
    "options", [(), ("--workers", "4"), ("--forwarded-allow-ips", "10.0.0.2")], ids=["alone", "workers", "proxy"]
)
def test_a_good_application_is_left_in_peace(source: str, options: tuple[str, ...], project: Project) -> None:
    project.write(source + GOOD)
    ended = project.run("doctor", "--app", "shop:app", *options)
    assert (ended.exit_code, ended.stdout.splitlines()[-1]) == (0, "0 errors, 0 warnings, 0 notes")


@pytest.mark.parametrize("name", ["fastapi_app", "flask_app"])
def test_the_examples_have_the_one_warning_that_is_told(name: str, project: Project) -> None:
    project.write((ROOT / f"examples/{name}.py").read_text(), "example")
    assert [one["code"] for one in found(project, app="example:app")] == ["UK205"]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param("trusted_proxies=['10.0.0.0/8']", id="a-network"),
        pytest.param("trusted_proxies=2", id="hops"),
    ],
)
def test_trusted_proxies_under_wsgi_are_read_once(more: str, project: Project) -> None:
    project.write(good(more, FLASK))
    assert codes(project, "--forwarded-allow-ips", "10.0.0.2") == []


def test_a_server_that_reads_no_forwarded_header_is_no_second_reader(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UVICORN_PROXY_HEADERS", "0")
    project.write(good("trusted_proxies=1"))
    assert codes(project) == []


def test_one_keeper_for_all_is_counted_once(project: Project) -> None:
    project.write(
        FASTAPI + "keeper = UsageKeeper(store='memory://', policies=[Policy('a', limits=['3/hour'])])\n"
        "app, sub = FastAPI(openapi_url=None), FastAPI(openapi_url=None)\n"
        "for one in (app, sub): one.add_middleware(UsageMiddleware, keeper=keeper)\n"
        "app.mount('/sub', sub)"
    )
    assert codes(project, "--workers", "1") == []


def test_cors_outside_is_right(project: Project) -> None:
    project.write(
        FASTAPI + GOOD + "from starlette.middleware.cors import CORSMiddleware; app.add_middleware(CORSMiddleware)"
    )
    assert codes(project) == []


# -- traffic -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path: Path) -> Callable[[Sequence[UsageRecord]], None]:
    def fill(records: Sequence[UsageRecord]) -> None:
        store = SqliteStore(tmp_path / "usage.db")
        store.append(records)
        store.close()

    return fill


def traffic(count: int, agents: int = 9, **changes: Any) -> list[UsageRecord]:
    return [
        make_record(serial, application="default", user_agent=f"agent/{serial % agents}", **changes)
        for serial in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        pytest.param(traffic(100, remote_address="10.0.0.2", route="/x", status=200), ["UK204"], id="one-proxy"),
        pytest.param(traffic(100, remote_address="8.8.8.8", route="/x", status=200), [], id="one-public-client"),
        pytest.param(traffic(99, remote_address="10.0.0.2", route="/x", status=200), [], id="too-few-to-tell"),
        pytest.param(traffic(100, 2, remote_address="127.0.0.1", route="/x", status=200), [], id="a-benchmark"),
        pytest.param(traffic(10, remote_address="8.8.8.8", route=None, status=200), ["UK502"], id="no-route"),
        pytest.param(traffic(10, remote_address="8.8.8.8", route="/x", status=404), ["UK502"], id="not-found"),
        pytest.param(traffic(9, remote_address="8.8.8.8", route=None, status=404), [], id="a-few"),
    ],
)
def test_what_traffic_tells(records: Any, expected: list[str], project: Project, filled: Any) -> None:
    filled(records)
    project.write(FASTAPI + GOOD)
    assert codes(project) == expected


def test_the_peer_of_traffic_says_nothing_where_proxies_are_trusted(project: Project, filled: Any) -> None:
    filled(traffic(100, remote_address="10.0.0.2", route="/x", status=200))
    project.write(good("trusted_proxies=1", FLASK))
    assert codes(project) == []


def test_a_record_from_the_future_is_found(project: Project, filled: Any) -> None:
    filled([make_record(1, application="default", at=4_000_000_000_000_000, route="/x", status=200)])
    project.write(FASTAPI + GOOD)
    (one,) = found(project)
    assert (one["code"], "2096-10-02 07:06:40+00:00" in one["sentence"]) == ("UK501", True)


@pytest.mark.parametrize("name", ["usage.db", "usage.counters.db", "usage.counters.db-wal"])
def test_a_file_from_the_future_is_found(name: str, project: Project, filled: Any, tmp_path: Path) -> None:
    filled([])
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (4_000_000_000, 4_000_000_000))
    project.write(FASTAPI + GOOD)
    assert codes(project) == ["UK501"]


def test_paths_that_match_nothing_are_shown_harmless(project: Project, filled: Any) -> None:
    filled(traffic(12, remote_address="8.8.8.8", route=None, path="/\x1b[2J\r\nUK999 error: forged\u202e"))
    project.write(FASTAPI + GOOD)
    told = project.run("doctor", "--app", "shop:app").stdout
    assert "/\\x1b[2J\\r\\nUK999 error: forged\\u202e (12x)" in told
    assert all(line.isprintable() for line in told.splitlines())
    assert project.run("doctor", "--app", "shop:app", "--json").stdout.isascii()


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system_is_found(
    kind: str, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n/dev/sdb {tmp_path}/y ext4 rw 0 0\n"
    )
    monkeypatch.setattr(places, "MOUNTS", mounts)
    project.write(FASTAPI + GOOD)
    assert codes(project) == ["UK405"]


def test_where_the_system_does_not_tell_nothing_is_said(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "MOUNTS", tmp_path / "absent")
    project.write(FASTAPI + GOOD)
    assert codes(project) == []


def test_a_full_disk_is_found(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int = 100 << 20

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage())
    project.write(FASTAPI + GOOD)
    (one,) = found(project)
    assert (one["code"], "100 MiB left" in one["sentence"]) == ("UK406", True)


def test_a_very_large_store_is_found(project: Project, filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    filled([])
    monkeypatch.setattr(places, "_LARGE", 100)
    project.write(good("retention=None"))
    (one,) = found(project)
    assert (one["code"], "records are kept for ever" in one["sentence"]) == ("UK407", True)


def test_counters_that_do_not_answer_are_found(project: Project) -> None:
    project.write("from tests.helpers import Down\n" + good("counters=Down()"))
    assert codes(project) == ["UK403"]


def test_a_folder_that_cannot_be_written_is_found(project: Project) -> None:
    project.write(good("store='sqlite:////absent/usage.db'"))
    assert codes(project) == ["UK101"]  # the keeper says it at once


# -- how it is told ----------------------------------------------------------------------------------------------------


def test_every_code_is_provoked_by_a_test() -> None:
    text = Path(__file__).read_text()
    assert [code for code in CODES if text.count(f'"{code}"') == 0] == []


def test_the_page_has_the_table_of_the_codes() -> None:
    page = (ROOT / "docs/command-line.md").read_text()
    rows = re.findall(r"^\| (UK\d+) \| (\w+) \| (.+?) \| `(.+)` \|$", page, re.MULTILINE)
    assert rows == [(one.number, one.severity, one.title, one.change) for one in CODES.values()]


def test_what_was_looked_at_is_told(project: Project) -> None:
    project.write(FASTAPI + GOOD)
    told = project.json("doctor", "--app", "shop:app", "--workers", "3")
    assert "3 workers (--workers)" in told["looked_at"][1]
    assert "usage.db does not exist yet" in told["looked_at"][2]


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"WEB_CONCURRENCY": "many"}, "WEB_CONCURRENCY is a number of workers, not 'many'"),
        ({"GUNICORN_CMD_ARGS": "--bind '"}, "GUNICORN_CMD_ARGS cannot be read"),
    ],
)
def test_an_environment_that_makes_no_sense_ends_with_2(
    environ: dict[str, str], sentence: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(FASTAPI + GOOD)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    ended = project.run("doctor", "--app", "shop:app")
    assert (ended.exit_code, sentence in ended.stderr) == (2, True)


def test_a_finding_is_told_with_its_line_to_change(project: Project) -> None:
    project.write(FASTAPI + GOOD.replace("make(", "make(trusted_proxies=['0.0.0.0/0'],"))
    lines = project.run("doctor", "--app", "shop:app", "--forwarded-allow-ips", "*").stdout.splitlines()
    assert lines[0] == "UK201 error: trusted_proxies trusts everybody"
    assert lines[2] == '  change: trusted_proxies=["10.0.0.0/8"]'
    assert json.dumps(found(project)[0])


# -- the attacks it warns of -------------------------------------------------------------------------------------------


def test_attack_2_a_header_that_server_and_keeper_both_read_is_warned_of(project: Project) -> None:
    project.write(good("trusted_proxies=['10.0.0.0/8']"))
    (one,) = found(project, "--forwarded-allow-ips", "10.0.0.2")
    assert one["sentence"].startswith("--forwarded-allow-ips is 10.0.0.2, so the server puts the client's address into")


@BOTH
def test_attack_23_burning_a_victims_limit_is_warned_of_until_an_address_is_bounded(
    source: str, project: Project
) -> None:
    alone = "Policy('p', identity=Header('X-Customer'), limits=['5/minute'])"
    project.write(source + f"app = make(policies=[{alone}])")
    assert codes(project) == ["UK205"]
    change = found(project)[0]["change"].partition(", or ")[0]
    project.write(source + f"app = make(policies=[{alone}, {change}])")
    assert codes(project) == []
