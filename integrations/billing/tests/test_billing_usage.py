"""Wrong usage is exit code 2, whichever option is wrong; a mistyped id is offered the nearest."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest
from power_billing.cli import make_parser
from power_billing.hours import HOUR, iso
from shop import ALICE, BOB, PRICED, Shop
from tariffs import BY_TURNS
from world import NOW

ID = "expected an id of Stripe's that begins with "
MOMENT = "expected a time from 1970 to 2200"
MONTH = "expected a month from 1970 on such as 2026-10"
CHOICE = "expected one of "
FILE = "expected the name of a file"
NAME = "expected text of 1 to 200 characters"
TYPES = "expected some of main, battery, solar, ups, with commas between them"
AMOUNT = "expected an amount above 0 such as 0.30"
CURRENCY = "expected three letters such as eur"
METER = "expected 1 to 16 lower-case letters, digits and underscores, a letter first"

# Of each command's argument or option that takes a value: wrong ones, and what would do.
WRONG_LINK = {
    "device_id": (NAME, ["", "  "]),
    "--customer": (f"{ID}cus_", ["", "alice", "cus_", "sub_1Nf", "cus_../x"]),
    "--types": (TYPES, ["", "sun", "main,", "main;ups", "Main"]),
    "--since": (MOMENT, ["", "noon", "2026-13-01", "1969-12-31"]),
}
WRONG_SINK = {
    "--sink": (CHOICE, ["", "xml"]),
    "--csv": (FILE, [""]),
}
WRONG = {
    "link": {**WRONG_LINK, "--subscription-item": (f"{ID}si_", ["", "sub_1Nf"])},
    "unlink": {"device_id": (NAME, [""])},
    "subscribe": {
        **WRONG_LINK,
        "--subscription": (f"{ID}sub_", ["", "si_1Nf"]),
        "--days-until-due": ("expected a whole number of at least 0", ["", "-1", "1.5", "soon"]),
    },
    "forget": {"--customer": (f"{ID}cus_", ["", "alice"])},
    "go-live": {
        "--customer": ("expected cus_TEST=cus_LIVE", ["", "cus_A", "cus_A=", "=cus_B", "a=b"])
    },
    "setup": {
        "--product": (NAME, ["", " "]),
        "--price": (AMOUNT, ["", "0,30", "0", "-1", "1e3", "nan", "30 ct", "0.", ".3"]),
        "--currency": (CURRENCY, ["", "euro", "€"]),
        "--unit": (CHOICE, ["", "GW"]),
        "--tariff": (FILE, [""]),
        "--meter": (METER, ["", "Roof", "1st", "a" * 17]),
    },
    "report": {
        **WRONG_SINK,
        "--until": (MOMENT, ["", "noon"]),
        "--metrics-file": (FILE, [""]),
    },
    "status": {"--metrics-file": (FILE, [""])},
    "reconcile": {**WRONG_SINK, "--month": (MONTH, ["", "2026-13", "0001-01", "9999-12"])},
    "resolve": {
        **WRONG_SINK,
        "--customer": (f"{ID}cus_", ["", "alice"]),
        "--hour": (MOMENT, ["", "noon"]),
    },
    "statement": {
        "--month": (MONTH, ["", "october", "1969-12", "2201-01"]),
        "--customer": (f"{ID}cus_", ["", "alice"]),
        "--format": (CHOICE, ["", "pdf"]),
        "--price": (AMOUNT, ["", "0,30"]),
        "--currency": (CURRENCY, ["", "e"]),
        "--unit": (CHOICE, ["", "GW"]),
        "--tariff": (FILE, [""]),
    },
}
# What a command needs before the rest of it is looked at.
NEEDED = {
    "link": {"device_id": "edge", "--customer": ALICE},
    "unlink": {"device_id": "edge"},
    "subscribe": {"device_id": "edge", "--customer": ALICE},
    "forget": {"--customer": ALICE},
    "statement": {"--month": "2026-08"},
}


def wrong_values() -> Iterator[tuple[str, str, str, str]]:
    """Each wrong value by itself: command, option, value, and what would do."""
    for command, options in WRONG.items():
        for option, (expected, values) in options.items():
            for value in values:
                yield command, option, value, expected


def line_of(command: str, option: str, value: str) -> list[str]:
    """The arguments of a command in which only that value is wrong."""
    words = {**NEEDED.get(command, {}), option: value}
    device_id = words.pop("device_id", None)
    given = [f"{name}={word}" for name, word in words.items()]
    return [command, *given, *([] if device_id is None else ["--", device_id])]


def refused(shop: Shop, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that is wrong usage; the last line on standard error."""
    with pytest.raises(SystemExit) as caught:
        shop(*arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    *_, said = printed.err.splitlines()
    return said


@pytest.fixture
def shop(shop: Shop) -> Iterator[Shop]:
    """Whatever is wrong, nothing is asked of Stripe."""
    yield shop
    assert shop.stripe.requests == []


@pytest.mark.parametrize(("command", "option", "value", "expected"), list(wrong_values()))
def test_a_wrong_value_is_wrong_usage(
    shop: Shop,
    capsys: pytest.CaptureFixture[str],
    command: str,
    option: str,
    value: str,
    expected: str,
) -> None:
    """With the option, what would do, and the value."""
    said = refused(shop, capsys, *line_of(command, option, value))
    assert said.startswith(f"power-billing: argument {option}: ")
    assert expected in said
    assert repr(value) in said


def test_every_value_of_every_command_is_tried() -> None:
    """A new option has wrong values too."""
    parser = make_parser()
    named = {}
    for name, command in parser.commands.items():
        if name in ("help", "completion"):
            continue
        named[name] = {
            action.option_strings[-1] if action.option_strings else action.dest
            for action in command._actions
            if action.nargs != 0 and action.help != argparse.SUPPRESS
        }
    assert {name: set(options) for name, options in WRONG.items()} == {
        name: options for name, options in named.items() if options
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("setup --product Energy", "--product, --price and --currency go together"),
        ("setup --unit MWh", "--unit is of --price: give both"),
        (
            "setup --product E --currency eur --price 0.1234567890123",
            "--price: 0.1234567890123 eur a kWh has more than 12 decimals a watt-hour",
        ),
        ("setup --tariff t.toml", "--tariff and --product go together"),
        ("setup --tariff t.toml --product E --unit kWh", "--tariff has the prices"),
        ("statement --month 2026-08 --price 1", "--price and --currency go together"),
        ("statement --month 2026-08 --unit MWh", "--unit is of --price: give both"),
        (
            "statement --month 2026-08 --price 1 --currency eur --tariff t.toml",
            "--tariff has the prices",
        ),
        ("statement --month 2026-10", "expected a month that has begun, got '2026-10'"),
        ("reconcile --month 2026-10", "expected a month that has begun, got '2026-10'"),
        ("link edge --customer cus_1 --since 2026-08-01", "expected a time of the past 35 days"),
        ("link edge --customer cus_1 --since 2199-01-01", "expected a time of the past 35 days"),
        (
            "subscribe edge --customer cus_1 --subscription sub_1 --days-until-due 0",
            "--days-until-due is for a new subscription: leave one out",
        ),
        ("report --dry-run --quiet", "--dry-run only prints"),
        ("report --dry-run --metrics-file x.prom", "--dry-run only prints"),
        ("resolve --take-over", "--take-over needs --customer"),
        ("resolve --take-over --customer cus_1 --all", "--take-over is of a whole customer"),
        ("resolve --take-over --customer cus_1 --hour -2h", "--take-over is of a whole customer"),
        (
            "go-live --customer cus_A=cus_X --customer cus_A=cus_Y",
            "--customer: cus_A is there twice",
        ),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    shop: Shop, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    """Nothing that was given is left out in silence."""
    assert message in refused(shop, capsys, *arguments.split())


def test_a_type_is_offered(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """The one that is most like a mistyped one."""
    said = refused(shop, capsys, "link", "edge", "--customer", ALICE, "--types", "main,batery")
    assert said.endswith("got 'main,batery': did you mean battery?")


# --- Mistyped ids


def link(shop: Shop, device: str = "edge", customer: str = ALICE) -> None:
    """Link without asking Stripe."""
    shop("link", device, "--customer", customer, "--since", iso(shop.hour - 10), "--offline")


def test_a_mistyped_device_is_offered_the_nearest(shop: Shop) -> None:
    """By link and subscribe one that there is, by unlink one that is linked."""
    (said,) = shop("link", "edgee", "--customer", ALICE, "--offline", code=1)
    assert said == "power-billing: no device has the id 'edgee': did you mean edge?"
    (said,) = shop("subscribe", "twinn", "--customer", ALICE, code=1)
    assert said == "power-billing: no device has the id 'twinn': did you mean twin?"
    (said,) = shop("link", "roof", "--customer", ALICE, "--offline", code=1)
    assert said == "power-billing: no device has the id 'roof': `power-manager devices` lists them"
    link(shop)
    (said,) = shop("unlink", "edgee", code=1)
    assert said == "power-billing: edgee: not linked: did you mean edge?"
    (said,) = shop("unlink", "twin", code=1)
    assert said == "power-billing: twin: not linked: see power-billing status"


@pytest.mark.parametrize(
    "command",
    [
        ["forget"],
        ["resolve"],
        ["resolve", "--keep"],
        ["resolve", "--take-over"],
        ["statement", "--month", "2026-09"],
    ],
)
def test_a_mistyped_customer_is_offered_the_nearest(shop: Shop, command: list[str]) -> None:
    """One that devices are billed to."""
    link(shop)
    (said,) = shop(*command, "--customer", "cus_Alicee1", code=1)
    wrong = "power-billing: cus_Alicee1: no device was ever billed to it"
    assert said == f"{wrong}: did you mean {ALICE}?"
    (said,) = shop(*command, "--customer", "cus_Zoe9", code=1)
    wrong = "power-billing: cus_Zoe9: no device was ever billed to it"
    assert said == f"{wrong}: see power-billing status"


# --- Where Stripe, or time, has its say


@pytest.fixture
def priced(shop: Shop) -> Iterator[Shop]:
    """Meter, product and price are there, and Alice is billed by `edge`."""
    shop(*PRICED)
    shop.subscribe()
    yield shop
    shop.stripe.requests.clear()


def test_a_customer_that_stripe_has_not_is_offered_the_nearest(priced: Shop) -> None:
    """One that devices are billed to already; nothing is linked."""
    options = ("twin", "--customer", "cus_Alicee1")
    *_, said = priced("link", *options, code=1)
    assert said.endswith(f"; nothing was linked: did you mean {ALICE}?")
    *_, said = priced("subscribe", *options, code=1)
    assert said.endswith(f"customers of their own: did you mean {ALICE}?")
    assert not any(line.startswith("twin: ") for line in priced("status"))


def test_a_script_may_subscribe_again_with_an_old_since(priced: Shop) -> None:
    """The link that it made is there, and goes on; only a new one cannot begin so long ago."""
    since = iso(priced.hour - 10)
    priced.clock = lambda: NOW + 50 * 24 * HOUR
    out = priced("subscribe", "edge", "--customer", ALICE, "--since", since)
    assert any("(found)" in line for line in out)
    with pytest.raises(SystemExit, match="2"):
        priced("subscribe", "twin", "--customer", BOB, "--since", since)


def test_a_month_of_which_no_hour_is_over_is_said(priced: Shop) -> None:
    """In its first hour there is nothing to compare; a statement shows it so far."""
    begin = 1_790_812_800.0  # 2026-10-01T00:00Z
    priced.clock = lambda: begin + 5.0
    (said,) = priced("reconcile", "--month", "2026-10", code=1)
    assert said == "power-billing: --month: no hour of that month is over yet"
    first, *_ = priced("statement", "--month", "2026-10")
    assert first.startswith("Energy billed, 2026-10, so far")


def test_times_before_now_are_before_the_clock(shop: Shop) -> None:
    """The one that the command line was given."""
    out = shop("link", "edge", "--customer", ALICE, "--since=-3h", "--offline")
    assert f"edge: billed to {ALICE} from {iso(shop.hour - 3)} on (all that counts)" in out
    assert shop("report", "--until=-2h", "--dry-run").pop() == "dry run: 1 hours would be sent"


def test_a_tariff_that_is_not_there_is_no_wrong_usage(shop: Shop) -> None:
    """Nor one that is wrong: exit code 1, with the file's name."""
    (said,) = shop("setup", "--product", "E", "--tariff", "missing.toml", code=1)
    assert said == "power-billing: missing.toml: cannot be read: No such file or directory"
    wrong = shop.tariff(BY_TURNS.replace("300", "0"))
    (said,) = shop(*wrong, code=1)
    assert "odd: price: expected an amount above 0 such as 0.30, got '0'" in said
