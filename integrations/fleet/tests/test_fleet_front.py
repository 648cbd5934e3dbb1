"""A hub's engine over HTTP: as much of ClickHouse's interface as its clients need."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clickhouse_connect
import pytest
from chaos_common import same
from clickhouse_connect.driver.exceptions import DatabaseError
from fleet_harness import carry
from hub_process import HubProcess, device
from power_fleet import front
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from servers import SOON, eventually


def post(url: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Status and body of an answer to a POST."""
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=SOON) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.fixture
def ask(one_hub: HubProcess) -> Callable[..., tuple[int, bytes]]:
    """Asks the front, with the right password."""
    parts = one_hub.addresses.clickhouse.removeprefix("http://").partition("@")
    user, _, password = parts[0].partition(":")

    def asked(body: bytes, query: str = "", **headers: str) -> tuple[int, bytes]:
        known = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}
        return post(f"http://{parts[2]}/{query}", body, **{**known, **headers})

    return asked


def test_the_stock_client_works(one_hub: HubProcess) -> None:
    """clickhouse-connect as it is: questions, values, commands, compressed inserts, errors with
    their code.
    """
    client = clickhouse_connect.get_client(dsn=one_hub.addresses.clickhouse)
    client.command("CREATE TABLE stock (a Int64, b Nullable(String)) ENGINE = MergeTree ORDER BY a")
    client.insert("stock", [[1, "é'\\"], [2, None]], column_names=["a", "b"])
    assert client.query("SELECT * FROM stock ORDER BY a").result_rows == [(1, "é'\\"), (2, None)]
    assert client.query("SELECT {x:Int64} + 1", {"x": 5}).result_rows == [(6,)]
    assert client.query("SELECT %(x)s", {"x": "it's"}).result_rows == [("it's",)]
    assert client.query("SELECT a FROM stock WHERE a > 2").result_rows == []
    assert client.command("SELECT count() FROM stock") == 2
    assert client.ping()
    with pytest.raises(DatabaseError, match="code: 47"):
        client.query("SELECT nothing_of_that_name")
    client.command("DROP TABLE stock")
    client.close()


def test_a_wrong_password_gets_nothing(one_hub: HubProcess) -> None:
    """However it is said; a sign of life is for everybody."""
    url = "http://" + one_hub.addresses.clickhouse.rpartition("@")[2]
    for headers in ({}, {"X-ClickHouse-User": "fleet", "X-ClickHouse-Key": "guess"},
                    {"Authorization": "Basic Zmxl"},
                    {"Authorization": "Basic ZmxlZXQ6Z3Vlc3M="}):  # fmt: skip
        assert post(url, b"SELECT 1", **headers)[0] == 403
    with urllib.request.urlopen(f"{url}/ping", timeout=SOON) as answer:
        assert answer.read() == b"Ok.\n"


def test_settings_hold_for_their_request_alone(ask: Callable[..., tuple[int, bytes]]) -> None:
    """Whichever connection to the engine the next ones get: as many at a time as there are."""
    question = b"SELECT value FROM system.settings WHERE name = 'max_block_size' AND sleep(0.3) = 0"
    usual = ask(question)
    assert ask(question, "?max_block_size=777") == (200, b"777\n")
    with ThreadPoolExecutor(front.CONNECTIONS) as threads:
        assert list(threads.map(ask, [question] * front.CONNECTIONS)) == [usual] * front.CONNECTIONS
    text = b"SELECT '1 FORMAT Native' AS x"
    assert ask(text, "?max_block_size=777") == (200, b"1 FORMAT Native\n")


@pytest.mark.parametrize(
    ("body", "query", "status", "said"),
    [
        (b"SET max_threads = 1", "", 501, b"settings go into the URL of each"),
        (b"SELECT 1", "?database=other", 501, b"a hub has one database, default; got 'other'"),
        (b"SELECT 1", "?a;b=1", 501, b"expected a setting's name, got 'a;b'"),
        (b"SELECT 1", "?no_such_setting=1", 500, b"Code: 115."),
        (b"SELECT", "", 500, b"Code: 62."),
        (b" ", "", 501, b"expected a statement, got none"),
        (b"INSERT INTO power_fresh (name) FORMAT Native\nrubbish", "", 500, b"Code: "),
    ],
    ids=["set", "database", "name", "setting", "syntax", "nothing", "rows"],
)
def test_what_the_front_refuses(
    ask: Callable[..., tuple[int, bytes]], body: bytes, query: str, status: int, said: bytes
) -> None:
    """Each with a word, and the connection serves the next question."""
    answer = ask(body, query)
    assert answer[0] == status
    assert said in answer[1]
    assert ask(b"SELECT 1") == (200, b"1\n")


def test_bodies_that_are_too_long_or_broken(ask: Callable[..., tuple[int, bytes]]) -> None:
    """They are refused before they are read, or after."""
    assert ask(b"x", **{"Content-Length": str(front.MAX_BODY + 1)})[0] == 400
    for length in ("-1", "1_0", "x"):
        said = f"expected a number of bytes, got {length!r}\n".encode()
        assert ask(b"x", **{"Content-Length": length}) == (400, said)
    status, said = ask(b"x", **{"Content-Encoding": "lz4"})
    assert (status, said[:18]) == (400, b"the body is no lz4")
    status, said = ask(b"x", **{"Content-Encoding": "br"})
    assert said == b"expected a body as it is, or as lz4 or gzip, got 'br'\n"
    assert ask(b"SELECT 1") == (200, b"1\n")


def test_an_insert_that_fails_at_its_end_is_said_to_have(
    ask: Callable[..., tuple[int, bytes]],
) -> None:
    """Rows that are well-formed, and that the engine cannot store all the same."""
    ask(b"CREATE TABLE picky (a Int64, CONSTRAINT c CHECK a > 0) ENGINE = MergeTree ORDER BY a")
    status, said = ask(b"INSERT INTO picky (a) FORMAT TabSeparated\n-1\n")
    assert (status, said[:10]) == (500, b"Code: 469.")
    assert ask(b"INSERT INTO picky FORMAT TabSeparated\n1\n2\n") == (200, b"")
    with_settings = b"INSERT INTO picky (a) SETTINGS max_threads = 1 FORMAT TabSeparated\n4\n"
    assert ask(with_settings) == (200, b"")
    assert ask(b"INSERT INTO picky SELECT 8 AS a\n") == (200, b"")
    assert ask(b"INSERT INTO picky VALUES (length('\n FORMAT x\n'))") == (200, b"")
    assert ask(b"SELECT sum(a) FROM picky") == (200, b"26\n")
    ask(b"DROP TABLE picky")


def test_questions_are_answered_side_by_side(ask: Callable[..., tuple[int, bytes]]) -> None:
    """A short one sees the long one at work, which is asked until it is seen."""
    long = b"SELECT count() FROM numbers(2) WHERE sleepEachRow(1) = 0"
    seen = (
        b"SELECT count() FROM system.processes WHERE query LIKE 'SELECT count() FROM numbers(2)%'"
    )
    is_seen = threading.Event()

    def ask_long() -> None:
        while not is_seen.is_set():
            ask(long)

    thread = threading.Thread(target=ask_long)
    thread.start()
    try:
        eventually(lambda: ask(seen) == (200, b"1\n"))
    finally:
        is_seen.set()
        thread.join()


def test_the_answers_of_a_hub_are_those_of_the_engine(one_hub: HubProcess, tmp_path: Path) -> None:
    """Carried through the codec and the sink's rows into its engine, a device's budget is the
    file's own.
    """
    pm = device(tmp_path / "b.db", "through the front")
    urls = [one_hub.addresses.clickhouse]
    carry(pm, Engine(urls))
    fleet = Fleet(urls)
    ids = ["through the front"]
    assert same(pm.power_budget_check(ids), fleet.budget(ids).value)
    assert pm.list_meters(ids[0]) == fleet.latest(ids).value
    pm.close()
