"""Do something in an engine of ClickHouse 26 with the rights of one of the example's users.

    python as_user.py DIRECTORY USER WORK ...

chDB knows one user, `default`: it gets the profile and the grants that the example's file gives
USER. A WORK is a command of power-fleet, an SQL statement, or `store`. Prints, as JSON, of each
what went wrong, or null.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

FLEET = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(FLEET), str(FLEET / "tests"), str(FLEET / "chaos"), str(FLEET.parents[1])]

import clickhouse_connect  # noqa: E402 - the lines above are where the rest is found
from clickhouse_connect.driver.client import Client  # noqa: E402
from clickhouse_connect.driver.exceptions import ClickHouseError  # noqa: E402
from fleet_harness import carry  # noqa: E402
from power_fleet import cli, schema  # noqa: E402
from power_fleet.engine import Engine, EngineError  # noqa: E402

from power_manager import PowerManager  # noqa: E402

_CONFIG = """<clickhouse>
<user_directories><users_xml><path>{home}/users.xml</path></users_xml></user_directories>
</clickhouse>
"""


def write_configuration(home: Path, user: str) -> Path:
    """The example's users with the rights of USER for `default`.

    Returns the file that names them.
    """
    tree = ElementTree.parse(FLEET / "example/clickhouse-users.xml")
    users = tree.getroot().find("users")
    assert users is not None
    own = users.find(f"power_{user}")
    assert own is not None
    for other in list(users):
        users.remove(other)
    own.tag = "default"
    own.remove(next(part for part in own if part.tag.startswith("password")))
    ElementTree.SubElement(own, "no_password")
    grants = own.find("grants")
    assert grants is not None
    # To chDB, what comes with an insert is a file; to a server it comes over the connection.
    ElementTree.SubElement(grants, "query").text = "GRANT READ ON FILE"
    users.append(own)
    for part in ("profiles", "quotas"):  # these the server's own configuration has
        found = tree.getroot().find(part)
        assert found is not None
        ElementTree.SubElement(found, "default")
    tree.write(home / "users.xml")
    (home / "config.xml").write_text(_CONFIG.format(home=home))
    return home / "config.xml"


def work(home: Path, client: Client, what: str) -> str | None:
    """Do something; return what went wrong."""
    url = f"chdb://{home}/data"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if what.split()[0].isupper():
                client.command(what)
            elif what == "store":
                store(home, Engine([url]))
            elif cli.main([*what.split(), "--clickhouse", url]) != 0:
                return said.getvalue()
        except (ClickHouseError, EngineError) as error:
            return str(error)
    return None


def store(home: Path, engine: Engine) -> None:
    """What a sink does."""
    schema.check_all(engine)
    with PowerManager(home / "edge-001.db") as pm:
        pm.register_device("edge-001", "Edge")
        pm.log_power(pm.add_meter("edge-001", "main").id, 1.0, 1.0)
        carry(pm, engine)


def main() -> int:
    """Do all of it."""
    home, user = Path(sys.argv[1]), sys.argv[2]
    client = clickhouse_connect.get_client(
        interface="chdb",
        path=str(home / "data"),
        chdb_options={"config-file": str(write_configuration(home, user))},
    )
    print(json.dumps([work(home, client, what) for what in sys.argv[3:]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
