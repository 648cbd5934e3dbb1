"""The Stripe sinks through the official SDK, in this process and over sockets; and how strict the
loopback is.
"""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

import pytest
import stripe
from loopback import KEY, FakeTransport, Loopback, serve
from power_billing.errors import BillingError
from power_billing.keys import API_KEY, API_URL, Secret
from power_billing.sinks import Outcome, UsageEvent
from power_billing.stripe_client import make_client
from power_billing.stripe_setup import Found, setup
from power_billing.stripe_sinks import open_sink, sink_from
from world import CUSTOMER, HOUR, NOW, World

THIS_HOUR = int(NOW // HOUR)


def client(server: Loopback, key: str = KEY) -> stripe.StripeClient:
    """The SDK with this server behind it."""
    return make_client(Secret(API_KEY, key), {}, FakeTransport(server))


# --- Setup


def test_setup_makes_the_meter_once(world: World) -> None:
    """Sum, by the hour; a second setup finds it."""
    first, second = setup(world.pm, client(world.server)), setup(world.pm, client(world.server))
    assert first == Found("mtr_test_1", made=True)
    assert second == Found("mtr_test_1", made=False)
    meter = world.server.meters[first.id]
    assert (meter["event_name"], meter["event_time_window"]) == ("power_watt_hours", "hour")
    assert meter["default_aggregation"] == {"formula": "sum"}


def test_setup_finds_the_meter_among_many(world: World) -> None:
    """Also on a later page of the list."""
    made = setup(world.pm, client(world.server)).id
    for number in range(12):
        world.server.meters[f"mtr_{number}"] = {
            **world.server.meters[made],
            "id": f"mtr_{number}",
            "event_name": "x",
        }
    assert setup(world.pm, client(world.server)) == Found(made, made=False)


def test_a_stripe_that_fails_at_the_look_at_the_meter_is_named(world: World) -> None:
    """The run ends before anything is sent."""
    world.sink()
    with pytest.raises(BillingError, match="Stripe refuses this key"):
        open_sink(
            world.pm,
            client(world.server, "sk_test_51Withdrawn000"),
            session=lambda _: client(world.server),
        )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("event_time_window", None, "None instead of 'hour'"),
        ("event_time_window", "day", "'day' instead of 'hour'"),
        ("default_aggregation", {"formula": "last"}, "'last' instead of 'sum'"),
        ("status", "inactive", "'inactive' instead of 'active'"),
        ("value_settings", {"event_payload_key": "wh"}, "'wh' instead of 'value'"),
    ],
)
def test_a_meter_that_counts_otherwise_is_refused(
    world: World, key: str, value: object, message: str
) -> None:
    """By setup, and by every run: it would bill wrongly."""
    setup(world.pm, client(world.server))
    world.server.meters["mtr_test_1"][key] = value
    with pytest.raises(BillingError, match=message):
        setup(world.pm, client(world.server))
    with pytest.raises(BillingError, match="a meter cannot be changed"):
        world.sink()


def test_without_setup_nothing_is_sent(world: World) -> None:
    """The error says what to run."""
    with pytest.raises(BillingError, match="no meter yet: run power-billing setup"):
        open_sink(world.pm, client(world.server), session=lambda _: client(world.server))


def test_a_key_of_another_account_does_not_see_the_meter(world: World) -> None:
    """Else its events would go to nobody, and Stripe would say so only later."""
    world.sink()
    world.server.meters.clear()
    with pytest.raises(BillingError, match="cannot see the meter mtr_test_1"):
        open_sink(world.pm, client(world.server), session=lambda _: client(world.server))


def test_the_price_of_a_trial_is_not_paid_by_the_live_file(world: World) -> None:
    """A file that reported to one meter refuses another one: what was billed there is not billed
    here.
    """
    world.link()
    world.use(3.0, 2)
    world.report()
    world.server.meters["mtr_live_1"] = {
        **world.server.meters.pop("mtr_test_1"),
        "id": "mtr_live_1",
    }
    with pytest.raises(
        BillingError, match="goes to stripe:mtr_test_1, so it cannot go to stripe:mtr_live_1"
    ):
        setup(world.pm, client(world.server))
    with pytest.raises(BillingError, match="cannot see the meter mtr_test_1"):
        world.report()


# --- The stream


def test_the_stream_sends_a_hundred_at_a_time(world: World) -> None:
    """One session, whole batches, the same events as v1."""
    for number in range(130):
        world.add_device(f"d{number}")
        world.link(f"d{number}", f"cus_N{number}")
        world.use(float(number + 1), 2, f"d{number}")
    done = world.usage.report(world.sink(stream=True))
    assert len(done.sent) == 130
    paths = [path.rpartition("/")[2] for _, path in world.server.requests]
    assert paths.count("meter_event_session") == 1
    assert paths.count("meter_event_stream") == 2
    assert [world.billed(f"cus_N{number}") for number in range(130)] == [
        number + 1 for number in range(130)
    ]
    assert world.server.events[0]["timestamp"] == (THIS_HOUR - 2) * 3600


def test_the_stream_opens_a_new_session_when_one_ends(world: World) -> None:
    """Stripe's tokens are good for 15 minutes."""
    world.link()
    sink = world.sink(stream=True)
    for revision in (0, 1):
        assert sink.send([UsageEvent(CUSTOMER, THIS_HOUR - 2, revision, 5)])[0].outcome is (
            Outcome.LATER if revision else Outcome.SENT
        )
        world.true_now += 16 * 60
    assert sink.send([UsageEvent(CUSTOMER, THIS_HOUR - 2, 1, 5)])[0].outcome is Outcome.SENT


def test_a_refused_batch_is_halved_until_the_event_at_fault_is_alone(world: World) -> None:
    """The others go through."""
    world.link()
    sink = world.sink(stream=True)
    events = [UsageEvent(CUSTOMER, THIS_HOUR - back, 0, 5) for back in range(1, 8)]
    events[4] = UsageEvent("no customer id", THIS_HOUR - 5, 0, 5)
    outcomes = [receipt.outcome for receipt in sink.send(events)]
    assert outcomes == [Outcome.SENT] * 4 + [Outcome.REFUSED] + [Outcome.SENT] * 2


def test_a_stream_timestamp_is_inside_its_hour(world: World) -> None:
    """With the revision's seconds, in the form that v2 takes."""
    world.link()
    sink = world.sink(stream=True)
    for revision in (0, 61, 5000):
        sink.send([UsageEvent(CUSTOMER, THIS_HOUR - 2, revision, 5)])
    begin = (THIS_HOUR - 2) * 3600
    assert [event["timestamp"] - begin for event in world.server.events] == [0, 61, 3599]


# --- Over sockets


def test_a_run_over_sockets(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own HTTP client, with lost answers: a server that hangs up."""
    world.link()
    for hours_ago in (4, 3, 2):
        world.use(10.0, hours_ago)
    with serve(world.server) as url:
        environ = {API_KEY: KEY, API_URL: url}
        setup(world.pm, make_client(Secret(API_KEY, KEY), environ))
        world.server.faults.extend(["lost-after", "", "500-after", "lost-before", "429-before"])
        done = world.usage.report(sink_from(environ, world.pm))
        assert done.complete
        assert world.billed() == 30
        world.use(20.0, 1)
        assert world.usage.report(sink_from(environ, world.pm, stream=True)).complete
    assert world.billed() == 50


def test_a_server_that_does_not_answer_is_a_lost_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the timeout the event is queued, and sent once in the end."""
    from threading import Event

    import power_billing.stripe_client as module

    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    monkeypatch.setattr(module, "NETWORK_RETRIES", 0)
    world.link()
    world.use(10.0, 3)
    hanging, enough = Event(), Event()

    def hang(_: str, path: str) -> None:
        if hanging.is_set() and path.endswith("meter_events"):
            enough.wait(20)

    with serve(world.server, hang) as url:
        environ = {API_KEY: KEY, API_URL: url}
        setup(world.pm, make_client(Secret(API_KEY, KEY), environ))
        hanging.set()
        assert not world.usage.report(sink_from(environ, world.pm)).complete
        hanging.clear()
        enough.set()
        assert world.usage.report(sink_from(environ, world.pm)).complete
    assert (world.billed(), len(world.server.events)) == (10, 1)


def test_a_stripe_that_is_not_there_is_named(world: World) -> None:
    """Nothing listens: setup says that it cannot be used now."""
    with serve(world.server) as url:
        pass
    with pytest.raises(BillingError, match="Stripe cannot be used now: APIConnectionError"):
        setup(world.pm, make_client(Secret(API_KEY, KEY), {API_URL: url}))


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "ftp://127.0.0.1.example.com", "http://127.0.0.1@evil.test", "http://["],
)
def test_the_key_goes_nowhere_unencrypted(url: str) -> None:
    """Another address must be https, or this machine."""
    with pytest.raises(BillingError, match="expected https, or this machine's own address"):
        make_client(Secret(API_KEY, KEY), {API_URL: url})


def test_the_sdk_tries_three_times_under_one_idempotency_key(world: World) -> None:
    """Without max_network_retries StripeClient would try once; our own further tries have keys of
    their own.
    """
    world.link()
    sink = world.sink()
    world.server.idempotency_keys.clear()
    world.server.faults.extend(["500-after"] * 3)
    receipt = sink.send([UsageEvent(CUSTOMER, THIS_HOUR - 2, 0, 5)])[0]
    assert receipt.outcome is Outcome.LATER
    assert len(world.server.idempotency_keys) == 3
    assert len(set(world.server.idempotency_keys)) == 1
    assert sink.send([UsageEvent(CUSTOMER, THIS_HOUR - 2, 0, 5)])[0].outcome is Outcome.KNOWN
    assert len(set(world.server.idempotency_keys)) == 2
    assert world.billed() == 5


def test_the_sdk_leaves_nothing_in_the_home_directory(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By itself it would keep an id of this machine there, and send times of earlier requests
    along.
    """
    import stripe._telemetry_id as telemetry

    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setattr(telemetry, "_loaded", False)
    monkeypatch.setattr(stripe, "enable_telemetry", True)  # as it comes
    with serve(world.server) as url:
        setup(world.pm, make_client(Secret(API_KEY, KEY), {API_URL: url}))
    assert not home.exists()
    telemetry.get_telemetry_id()
    assert home.exists(), "it would have been here, so the test can fail"


# --- Secrets


def test_the_key_is_shown_nowhere(
    world: World,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Not in logs down to DEBUG, errors, tracebacks, reprs or the file, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="stripe")
    world.link()
    world.use(10.0, 3)
    shown = [repr(Secret(API_KEY, KEY)), str(Secret(API_KEY, KEY)), f"{Secret(API_KEY, KEY)!r}"]
    for fault in ("401-before", "429-before", "500-before", "lost-before", "400-before"):
        world.server.faults.extend([fault] * 3)
        try:
            shown += [str(row) for row in world.report().open]
        except BillingError:
            shown.append(traceback.format_exc())
        world.server.faults.clear()
    wrong = client(world.server, "sk_test_51WrongWrongWrong99")
    with pytest.raises(BillingError) as caught:
        setup(world.pm, wrong)
    shown += ["".join(traceback.format_exception(caught.value)), caplog.text, *capfd.readouterr()]
    shown += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    for secret in (KEY, "sk_test_51WrongWrongWrong99"):
        assert not any(secret in text for text in shown)
    assert caplog.records, "the SDK logs, so the test can fail"


# --- The loopback itself


EVENT = {
    "event_name": "power_watt_hours",
    "payload": {"stripe_customer_id": CUSTOMER, "value": "5"},
    "identifier": "one",
    "timestamp": int(NOW),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantity": "3"}, "unknown parameter: quantity"),
        ({"event_name": "other"}, "No active meter found"),
        ({"event_name": ""}, "Invalid event_name"),
        ({"identifier": "x" * 101}, "Invalid identifier"),
        ({"timestamp": int(NOW) + 301}, "up to 5 minutes ahead"),
        ({"timestamp": int(NOW) - 35 * 86_400 - 1}, "within the past 35 days"),
        ({"timestamp": "yesterday"}, "Invalid timestamp"),
        ({"payload": {"value": "5"}}, r"Missing required param: payload\[stripe_customer_id\]"),
        (
            {"payload": {"stripe_customer_id": CUSTOMER, "value": "5.5"}},
            r"Invalid payload\[value\]",
        ),
        ({"payload": {"stripe_customer_id": CUSTOMER, "value": "1" * 16}}, "15 significant digits"),
        (
            {"payload": {"stripe_customer_id": CUSTOMER, "value": "5", "action": "set"}},
            "unknown parameter",
        ),
    ],
)
def test_the_loopback_is_strict(world: World, change: dict[str, object], message: str) -> None:
    """It refuses what Stripe refuses, as errors that the SDK knows."""
    world.sink()
    with pytest.raises(stripe.InvalidRequestError, match=message):
        client(world.server).v1.billing.meter_events.create({**EVENT, **change})  # type: ignore[typeddict-item]
    assert world.server.events == []


def test_the_loopback_knows_identifiers_for_a_day(world: World) -> None:
    """A duplicate is refused without a code, and taken again after 24 hours."""
    world.sink()
    events = client(world.server).v1.billing.meter_events
    events.create(EVENT)  # type: ignore[arg-type]
    with pytest.raises(
        stripe.InvalidRequestError, match="An event already exists with identifier one"
    ) as caught:
        events.create(EVENT)  # type: ignore[arg-type]
    assert caught.value.code is None
    world.true_now += 86_401
    events.create({**EVENT, "timestamp": int(NOW)})  # type: ignore[typeddict-item]
    assert len(world.server.events) == 2


def test_the_loopback_holds_idempotency_keys_to_their_request(world: World) -> None:
    """The same request is answered as before; another one under the same key is an error."""
    world.sink()
    events = client(world.server).v1.billing.meter_events
    key: stripe.RequestOptions = {"idempotency_key": "k"}
    first = events.create(EVENT, key)  # type: ignore[arg-type]
    assert events.create(EVENT, key).identifier == first.identifier  # type: ignore[arg-type]
    assert len(world.server.events) == 1
    with pytest.raises(stripe.IdempotencyError):
        events.create({**EVENT, "identifier": "two"}, key)  # type: ignore[typeddict-item]


def test_the_loopback_takes_no_other_key(world: World) -> None:
    """401, as the SDK's AuthenticationError."""
    with pytest.raises(stripe.AuthenticationError):
        client(world.server, "sk_test_51SomebodyElses00").v1.billing.meters.list()


class Forgetful(Loopback):
    """It takes an event, and its answer does not say which."""

    def _take(self, values: dict[str, str], timestamp: int, key: str) -> dict[str, Any]:
        answer = super()._take(values, timestamp, key)
        del answer["identifier"]
        return answer


def test_an_answer_that_names_no_event_is_no_success(world: World) -> None:
    """Such as that of something between here and Stripe: the event is sent again, Stripe knows it,
    and its sum decides.
    """
    world.server = Forgetful(lambda: world.true_now)
    (receipt,) = world.sink().send([UsageEvent(CUSTOMER, THIS_HOUR - 2, 0, 5)])
    assert receipt.outcome is Outcome.LATER
    assert receipt.reason == "Stripe's answer does not name the event"
    world.link()
    world.use(10.0, 3)
    (sent,) = world.report().sent
    assert (sent.event.revision, sent.reason) == (0, "the biller had it already")
    assert world.billed() == 5 + 10
