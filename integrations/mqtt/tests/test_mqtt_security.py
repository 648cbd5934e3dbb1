"""TLS, certificates, passwords, and the example of mosquitto's access rules, on a real
mosquitto.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority
from mosquitto import Listener, Mosquitto
from world import HERE, bridge, power_mqtt

from power_manager import PowerManager

HOSTS = "IP:127.0.0.1,DNS:localhost"
USERS = ("edge-001", "edge-002", "homeassistant")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> tuple[Path, Path]:
    """The broker's certificate and key."""
    return authority.sign("server", HOSTS)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A file with two devices."""
    path = tmp_path / "power.db"
    with PowerManager(path) as pm:
        for device_id in ("edge-001", "edge-002"):
            pm.register_device(device_id, device_id)
            meter = pm.add_meter(device_id, "main")
            pm.log_power(meter.id, 5.0, 1.0)
    return path


def tls(authority: Authority, server: tuple[Path, Path]) -> list[str]:
    """Lines of a listener that speaks TLS."""
    certificate, key = server
    return [f"cafile {authority.ca}", f"certfile {certificate}", f"keyfile {key}"]


@pytest.fixture
def encrypted(
    tmp_path: Path, authority: Authority, server: tuple[Path, Path]
) -> Iterator[Mosquitto]:
    """A broker that speaks TLS, and lets anybody in."""
    with Mosquitto(tmp_path / "tls", listener=tls(authority, server)) as made:
        yield made


def says(db: Path, log: Path, broker: Mosquitto, expected: str, *options: object) -> str:
    """Run a bridge until it has said something; what it said."""
    arguments = ("publish", "--db", db, "--broker", f"mqtts://127.0.0.1:{broker.port}", *options)
    with bridge(*arguments, log=log) as running:
        running.wait_for(expected)
        assert running.end() == 0
        return running.log()


def test_a_broker_with_a_certificate_of_our_own_authority_is_trusted(
    db: Path, tmp_path: Path, encrypted: Mosquitto, authority: Authority
) -> None:
    """And its name is checked."""
    says(db, tmp_path / "log", encrypted, "connected, MQTT 5", "--ca", authority.ca)


def test_any_other_certificate_is_not_trusted(
    db: Path, tmp_path: Path, encrypted: Mosquitto
) -> None:
    """Neither by this machine's authorities nor by another one of ours."""
    other = Authority(tmp_path / "other")
    for number, options in enumerate(([], ["--ca", other.ca])):
        said = says(
            db, tmp_path / f"log{number}", encrypted, "certificate is not trusted", *options
        )
        assert "connected" not in said


def test_a_certificate_for_another_host_is_not_trusted(
    db: Path, tmp_path: Path, authority: Authority
) -> None:
    """Whoever has signed it."""
    elsewhere = authority.sign("elsewhere", "DNS:elsewhere.example.com")
    with Mosquitto(tmp_path / "else", listener=tls(authority, elsewhere)) as broker:
        said = says(
            db, tmp_path / "log", broker, "certificate is not trusted", "--ca", authority.ca
        )
    assert "IP address mismatch" in said


@pytest.mark.parametrize("is_shown", [True, False])
def test_a_broker_may_want_our_certificate(
    db: Path, tmp_path: Path, authority: Authority, server: tuple[Path, Path], is_shown: bool
) -> None:
    """With --cert and --key we have one; without, the broker hangs up."""
    certificate, key = authority.sign("edge-001")
    listener = [*tls(authority, server), "require_certificate true"]
    options = ["--ca", authority.ca]
    if is_shown:
        options += ["--cert", certificate, "--key", key]
    with Mosquitto(tmp_path / "strict", listener=listener) as broker:
        says(db, tmp_path / "log", broker, "connected" if is_shown else "trying again", *options)


def test_plain_mqtt_to_a_broker_that_speaks_tls_does_not_connect(
    db: Path, tmp_path: Path, encrypted: Mosquitto
) -> None:
    """It is said, and tried again."""
    with bridge("publish", "--db", db, "--broker", encrypted.url, log=tmp_path / "log") as running:
        running.wait_for("the connection was lost")


# --- The example of access rules


def example(folder: Path, authority: Authority, server: tuple[Path, Path]) -> Mosquitto:
    """A broker as mosquitto/power.conf and power.acl have it, with paths of this test."""
    folder.mkdir()
    text = (HERE / "mosquitto/power.conf").read_text(encoding="utf-8")
    passwords, acl = folder / "power.passwd", folder / "power.acl"
    acl.write_text((HERE / "mosquitto/power.acl").read_text(encoding="utf-8"), encoding="utf-8")
    passwords.touch()
    for user in USERS:
        subprocess.run(["mosquitto_passwd", "-b", passwords, user, f"secret of {user}"], check=True)
    certificate, key = server
    paths = {
        "/etc/mosquitto/power.passwd": passwords,
        "/etc/mosquitto/power.acl": acl,
        "/etc/mosquitto/certs/ca.crt": authority.ca,
        "/etc/mosquitto/certs/server.crt": certificate,
        "/etc/mosquitto/certs/server.key": key,
        "/var/lib/mosquitto/": f"{folder}/",
    }
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    for name, path in paths.items():
        assert name in text
        text = text.replace(name, str(path))
    lines = text.split("\n")
    assert "listener 8883" in lines
    is_of_listener = re.compile("(cafile|certfile|keyfile|tls_version) ")
    listener = [line for line in lines if is_of_listener.match(line)]
    # The port is a free one.
    settings = [line for line in lines if line not in listener and not line.startswith("listener ")]
    return Mosquitto(folder, settings=settings, listener=listener)


def options_of(folder: Path, broker: Mosquitto, authority: Authority, user: str) -> list[object]:
    """How the README has a device publish."""
    password = folder / f"password of {user}"
    password.write_text(f"secret of {user}\n", encoding="utf-8")
    password.chmod(0o600)
    url = f"mqtts://{user}@127.0.0.1:{broker.port}"
    return ["--broker", url, "--password-file", password, "--ca", authority.ca]


def test_a_device_writes_its_own_topics_and_no_others(
    db: Path, tmp_path: Path, authority: Authority, server: tuple[Path, Path]
) -> None:
    """By the example: what edge-001 publishes as edge-002 is refused and said; Home Assistant reads
    both.
    """
    with example(tmp_path / "example", authority, server) as broker:
        options = options_of(tmp_path, broker, authority, "edge-001")
        reader = Listener(
            broker,
            "power/#",
            user="homeassistant",
            password="secret of homeassistant",
            ca=authority.ca,
        )
        with reader as listener:
            arguments = ("publish", "--db", db, *options, "--device")
            with bridge(*arguments, "edge-001", log=tmp_path / "right") as running:
                listener.wait(lambda: "power/edge-001/totals" in listener.latest())
                with PowerManager(db) as pm:
                    event = pm.trigger_event("edge-001", "restore")
                listener.wait(
                    lambda: event.id.encode() in b"".join(listener.of("power/edge-001/event"))
                )
                assert running.end() == 0
            listener.wait(lambda: listener.latest()["power/edge-001/availability"] == b"offline")
            assert "refuses" not in running.log()
            with bridge(*arguments, "edge-002", log=tmp_path / "wrong") as running:
                running.wait_for("the broker refuses power/edge-002/")
                with PowerManager(db) as pm:
                    pm.trigger_event("edge-002", "restore")
                running.wait_for("the broker refuses an event on power/edge-002/event")
                running.process.kill()  # not even its last will is published
                running.process.wait()
            with bridge(*arguments, "edge-001", log=tmp_path / "again") as running:
                listener.wait(lambda: listener.latest()["power/edge-001/availability"] == b"online")
        assert not any(topic.startswith("power/edge-002") for topic in listener.latest())


def test_what_is_not_allowed_does_not_keep_the_rest_from_being_published(
    db: Path, tmp_path: Path, authority: Authority, server: tuple[Path, Path]
) -> None:
    """Mosquitto ends the connection at the first message that it does not allow, which all others
    wait behind.
    """
    with example(tmp_path / "example", authority, server) as broker:
        reader = Listener(
            broker,
            "power/#",
            user="homeassistant",
            password="secret of homeassistant",
            ca=authority.ca,
        )
        words = ("publish", "--db", db, *options_of(tmp_path, broker, authority, "edge-001"))
        with reader as listener, bridge(*words, "--name", "all", log=tmp_path / "log") as running:
            listener.wait(lambda: "power/edge-001/totals" in listener.latest())
            running.wait_for("the broker refuses power/bridge/all/availability")
            with PowerManager(db) as pm:
                event = pm.trigger_event("edge-001", "restore")
            listener.wait(
                lambda: event.id.encode() in b"".join(listener.of("power/edge-001/event"))
            )
        assert not any(topic.startswith("power/edge-002") for topic in listener.latest())


def test_nobody_comes_in_without_the_password_of_the_example(
    db: Path, tmp_path: Path, authority: Authority, server: tuple[Path, Path]
) -> None:
    """Neither without one nor with another's."""
    with example(tmp_path / "example", authority, server) as broker:
        options = options_of(tmp_path, broker, authority, "edge-001")
        (tmp_path / "password of edge-001").write_text("secret of edge-002\n")
        for number, words in enumerate((options, ["--ca", authority.ca])):
            log = tmp_path / f"log{number}"
            if "--broker" in words:
                arguments = ("publish", "--db", db, *words)
                with bridge(*arguments, log=log) as running:
                    running.wait_for("the broker refuses us: Not authorized")
            else:
                says(db, log, broker, "the broker refuses us: Not authorized", *words)


def test_a_password_that_would_go_over_the_net_in_the_clear_is_wrong_usage(
    db: Path, tmp_path: Path
) -> None:
    """Exit code 2, and no attempt to connect."""
    (tmp_path / "password").write_text("secret\n")
    ran = power_mqtt(
        "publish",
        *("--db", db),
        *("--broker", "mqtt://a@broker.example.com"),
        *("--password-file", tmp_path / "password"),
    )
    assert ran.returncode == 2
    assert ran.stderr.endswith("could read the password: use mqtts://\n")
