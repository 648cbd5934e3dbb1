"""Files of a tariff: which hour is in which period, and every one that is refused, with what would
do.
"""

from __future__ import annotations

import sys
import zoneinfo
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_billing.tariff import DAYS, WEEK_HOURS, Tariff, shown_hours, zone_of
from power_billing.tariff_file import parse_tariff, read_tariff
from tariffs import TWO, at

from power_manager import InvalidValue


def week(hours: str = "", days: str = "", more: str = "[rest]\nprice = 1") -> Tariff:
    """A tariff of UTC with one period of those hours and days, and another for what is left."""
    lines = [f"hours = {hours}" if hours else "", f"days = {days}" if days else "", "price = 2"]
    return parse_tariff('currency = "eur"\n[one]\n' + "\n".join(lines) + "\n" + more)


def refused(text: str) -> str:
    """What is said of a text that is no tariff."""
    with pytest.raises(InvalidValue) as error:
        parse_tariff(text)
    return str(error.value)


class TestHours:
    """An hour belongs to the period that it begins in, by the clocks on the wall there."""

    def test_weekdays_and_the_rest(self) -> None:
        """Monday from 7 to 22 is peak, in winter an hour later by UTC than in summer."""
        tariff = parse_tariff(TWO)
        assert tariff.period_of(at("2026-07-06T05:00")) == "peak"
        assert tariff.period_of(at("2026-07-06T04:00")) == "off_peak"
        assert tariff.period_of(at("2026-12-07T05:00")) == "off_peak"
        assert tariff.period_of(at("2026-12-07T06:00")) == "peak"
        assert tariff.period_of(at("2026-12-07T20:00")) == "peak"
        assert tariff.period_of(at("2026-12-07T21:00")) == "off_peak"
        assert tariff.period_of(at("2026-12-05T12:00")) == "off_peak", "a Saturday"

    def test_the_hour_that_comes_twice_is_in_its_period_twice(self) -> None:
        """On 25 October 2026 Berlin has 02:00 twice, and a day of 25 hours."""
        night = TWO.replace("07:00-22:00", "02:00-03:00").replace("mon-fri", "sun")
        tariff = parse_tariff(night)
        begin = at("2026-10-24T22:00")
        periods = [tariff.period_of(begin + step) for step in range(25)]
        assert [step for step, name in enumerate(periods) if name == "peak"] == [2, 3]

    def test_the_hour_that_does_not_come_is_in_none(self) -> None:
        """On 28 March 2027 Berlin has no 02:00, and a day of 23 hours."""
        night = TWO.replace("07:00-22:00", "02:00-03:00").replace("mon-fri", "sun")
        tariff = parse_tariff(night)
        begin = at("2027-03-27T23:00")
        assert {tariff.period_of(begin + step) for step in range(23)} == {"off_peak"}

    def test_several_spans_and_several_days(self) -> None:
        """A night is written as two spans, and days that are apart as a list."""
        one = week('["22:00-24:00", "00:00-06:00"]', '["mon", "sat-sun"]').periods[0]
        night = {0, 1, 2, 3, 4, 5, 22, 23}
        assert one.hours == {day * 24 + hour for day in (0, 5, 6) for hour in night}

    def test_days_may_go_round_the_week(self) -> None:
        """From Saturday to Monday are three days."""
        assert {hour // 24 for hour in week(days='"sat-mon"').periods[0].hours} == {5, 6, 0}

    def test_hours_alone_are_of_every_day_and_days_alone_whole(self) -> None:
        """What is left out is no limit."""
        assert len(week(hours='"07:00-09:00"').periods[0].hours) == 14
        assert len(week(days='"sun"').periods[0].hours) == 24

    def test_one_period_may_have_the_whole_week(self) -> None:
        """Then there is one price."""
        (only,) = parse_tariff('currency = "eur"\n[all]\nprice = 1').periods
        assert only.hours == frozenset(range(WEEK_HOURS))

    @given(st.integers(0, 2**21), st.sampled_from(["Europe/Berlin", "America/New_York", "UTC"]))
    def test_every_hour_has_the_period_of_its_local_hour(self, hour: int, zone: str) -> None:
        """For any hour of two centuries: one period, by the weekday and hour that a clock there
        shows.
        """
        tariff = parse_tariff(TWO.replace("Europe/Berlin", zone))
        there = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(hours=hour)
        local = there.astimezone(ZoneInfo(zone))
        is_peak = local.weekday() < 5 and 7 <= local.hour < 22
        assert tariff.period_of(hour) == ("peak" if is_peak else "off_peak")

    @given(
        st.lists(st.sampled_from("abcd"), min_size=24, max_size=24),
        st.lists(st.sampled_from("abcd"), min_size=24, max_size=24),
        st.integers(0, 2**21),
    )
    def test_any_division_of_the_week_is_read_as_it_is_meant(
        self, weekday: list[str], weekend: list[str], hour: int
    ) -> None:
        """Any hour of a weekday and of a weekend belongs to the one period that names it."""
        text = 'currency = "eur"\n'
        for kind, days, by_hour in (("w", "mon-fri", weekday), ("e", "sat-sun", weekend)):
            for name in sorted(set(by_hour)):
                own = [at for at in range(24) if by_hour[at] == name]
                spans = [f"{begin:02d}:00-{begin + 1:02d}:00" for begin in own]
                text += f'[{kind}{name}]\ndays = "{days}"\nhours = {spans}\nprice = 1\n'
        there = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(hours=hour)
        kind, by_hour = ("e", weekend) if there.weekday() > 4 else ("w", weekday)
        assert parse_tariff(text).period_of(hour) == kind + by_hour[there.hour]

    @given(st.sets(st.integers(0, WEEK_HOURS - 1), min_size=1))
    def test_hours_are_shown_so_that_they_can_be_read_again(self, hours: set[int]) -> None:
        """What is printed of a period names its hours, all of them and no others."""
        read: set[int] = set()
        for part in shown_hours(frozenset(hours)).split("; "):
            days, _, spans = part.partition(" ")
            more = "" if len(hours) == WEEK_HOURS else "[rest]\nprice = 1"
            quoted = ", ".join(f'"{span}"' for span in spans.split(", "))
            if (days, spans) == ("mon-sun", "00:00-24:00"):
                more = ""
            read |= week(f"[{quoted}]", f'"{days}"', more).periods[0].hours
        assert read == hours

    def test_hours_as_they_are_shown(self) -> None:
        """Days that are alike are named together."""
        peak, off_peak = parse_tariff(TWO).periods
        assert shown_hours(peak.hours) == "mon-fri 07:00-22:00"
        assert shown_hours(off_peak.hours) == (
            "mon-fri 00:00-07:00, 22:00-24:00; sat-sun 00:00-24:00"
        )


class TestValues:
    """Prices are as they are written, and meters have names."""

    def test_a_price_is_read_as_it_is_written(self) -> None:
        """Digits that binary cannot have stay, and a whole number is a price."""
        text = TWO.replace("0.34", "0.34123456789").replace("0.20", "1")
        peak, off_peak = parse_tariff(text).periods
        assert peak.price.amount == Decimal("0.34123456789")
        assert (off_peak.price.amount, off_peak.price.unit) == (Decimal(1), "kWh")

    def test_the_unit_and_the_currency_are_for_all(self) -> None:
        """A price is of the file's unit, in its currency."""
        found = parse_tariff('unit = "MWh"\n' + TWO.replace("0.34", "340.5"))
        assert str(found.prices()["peak"]) == "340.50 EUR a MWh"

    def test_utc_is_utc_however_it_is_written(self) -> None:
        """It is the default, and no other zone in other letters."""
        tariff = parse_tariff(TWO.replace("Europe/Berlin", "utc"))
        assert tariff.has_same_hours(parse_tariff(TWO.replace('zone = "Europe/Berlin"', "")))

    def test_other_prices_are_the_same_hours(self) -> None:
        """Zone, hours and names say where an hour belongs; what it costs, and the order in the
        file, do not.
        """
        tariff = parse_tariff(TWO)
        head, _, tables = TWO.partition("[peak]")
        peak, _, off_peak = tables.partition("[off_peak]")
        assert tariff.has_same_hours(parse_tariff(TWO.replace("0.34", "0.99")))
        assert tariff.has_same_hours(parse_tariff(f"{head}[off_peak]{off_peak}[peak]{peak}"))
        for old, new in (("07:00", "08:00"), ("[peak]", "[high]"), ("Berlin", "London")):
            assert not tariff.has_same_hours(parse_tariff(TWO.replace(old, new)))


REFUSED = {
    "": "expected from 1 to 20 periods, got 0",
    "zone =": "expected TOML: ",
    "x = " + "[" * 5000: "expected TOML: ",
    "x = " + "9" * 5000: "expected TOML: ",
    TWO.replace("currency", "curency"): "got the key 'curency': did you mean currency?",
    "price = 1\n" + TWO: "or a period as a table [price], got the key 'price'",
    "[[peak]]\nprice = 1": "or a period as a table [peak], got the key 'peak'",
    TWO.replace('currency = "eur"', ""): "currency: expected text, got nothing",
    TWO.replace('"eur"', '"euro"'): (
        "peak: currency: expected three letters such as eur, got 'euro'"
    ),
    TWO.replace('"eur"', "1.5"): "currency: expected text, got '1.5'",
    "[unit]\nprice = 1\n[currency]\nprice = 1": "currency: expected text, got {",
    'unit = "J"\n' + TWO: "unit: expected Wh, kWh, MWh, got 'J'",
    "".join(f"[p{n}]\nprice = 1\n" for n in range(21)): "expected from 1 to 20 periods, got 21",
    TWO.replace("Berlin", "Berlim"): "got 'Europe/Berlim': did you mean Europe/Berlin?",
    TWO.replace("Europe/Berlin", "local"): (
        "expected a zone's own name such as Europe/Berlin, got 'local'"
    ),
    TWO.replace("Europe/Berlin", "localtime"): "expected a zone's own name such as Europe/Berlin",
    TWO.replace("Europe/Berlin", ""): "zone: expected text, got ''",
    TWO.replace("Europe/Berlin", "Asia/Kolkata"): (
        "zone: Asia/Kolkata is +5.5 hours from UTC in 2020"
    ),
    TWO.replace("Europe/Berlin", "+05:45"): "zone: +05:45 is +5.75 hours from UTC in 2020",
    TWO.replace("Europe/Berlin", "Australia/Lord_Howe"): "+10.5 hours from UTC in 2020",
    TWO.replace("[peak]", "[Peak]"): "up to 23 small letters, digits and _, got 'Peak'",
    TWO.replace("[peak]", f"[{'p' * 24}]"): "up to 23 small letters",
    TWO.replace("days", "day"): "peak: expected hours, days, price, got 'day': did you mean days?",
    TWO + "[peak.more]\nprice = 1": "peak: expected hours, days, price, got 'more'",
    TWO.replace("price = 0.20", ""): (
        "off_peak: price: expected an amount such as 0.34, got nothing"
    ),
    TWO.replace("0.20", "true"): "off_peak: price: expected an amount such as 0.34, got True",
    TWO.replace("0.20", "[1]"): "off_peak: price: expected an amount such as 0.34, got [1]",
    TWO.replace("0.20", "-1"): "off_peak: price: expected an amount above 0 such as 0.30, got '-1'",
    TWO.replace("0.20", "0.0"): (
        "off_peak: price: expected an amount above 0 such as 0.30, got '0.0'"
    ),
    TWO.replace("0.20", "2e-1"): (
        "off_peak: price: expected an amount above 0 such as 0.30, got '2e-1'"
    ),
    TWO.replace("0.20", "nan"): (
        "off_peak: price: expected an amount above 0 such as 0.30, got 'nan'"
    ),
    TWO.replace("07:00-22:00", "7-22"): "peak: hours: expected such as '07:00-22:00', got '7-22'",
    TWO.replace("07:00-22:00", "07:00-22:30"): (
        "peak: hours: expected whole hours such as '07:00-22:00'"
    ),
    TWO.replace("07:00-22:00", "22:00-07:00"): (
        "got '22:00-07:00': over midnight write two, such as ['22:00-24:00', '00:00-07:00']"
    ),
    TWO.replace("07:00-22:00", "07:00-07:00"): "expected an end after the start, got '07:00-07:00'",
    TWO.replace("07:00-22:00", "07:00-25:00"): "expected from 00:00 to 24:00, got '07:00-25:00'",
    TWO.replace("07:00-22:00", "24:00-24:00"): "expected from 00:00 to 24:00, got '24:00-24:00'",
    TWO.replace('"07:00-22:00"', "[]"): (
        "hours: expected text such as '00:00-24:00', or a list of such, got []"
    ),
    TWO.replace('"07:00-22:00"', "7"): (
        "hours: expected text such as '00:00-24:00', or a list of such, got 7"
    ),
    TWO.replace("mon-fri", "Mon"): "peak: days: expected such as 'mon-fri' or 'sat', got 'Mon'",
    TWO.replace("mon-fri", "mon-"): "peak: days: expected such as 'mon-fri' or 'sat', got 'mon-'",
    TWO + 'hours = "21:00-24:00"': (
        "mon 21:00 is in peak and in off_peak: an hour belongs to one period"
    ),
    TWO + 'days = "sat-sun"': (
        "mon 00:00 is in no period: one without hours and days has all that is left"
    ),
    TWO + "[other]\nprice = 1": "off_peak and other have neither hours nor days: only one",
    TWO.replace("07:00-22:00", "00:00-24:00").replace("mon-fri", "mon-sun"): (
        "off_peak: no hour is left for it: remove it, or give it hours"
    ),
}


class TestRefused:
    """A file that is no tariff is refused whole, by what is wrong in it."""

    @pytest.mark.parametrize(("text", "said"), REFUSED.items(), ids=range(len(REFUSED)))
    def test_what_is_wrong_is_said(self, text: str, said: str) -> None:
        """Each by the key, the value, and what would do."""
        assert said in refused(text)

    @pytest.mark.parametrize("day", range(7))
    @pytest.mark.parametrize("hour", [0, 12, 23])
    def test_a_gap_is_found_wherever_it_is(self, day: int, hour: int) -> None:
        """One hour of the week without a period is named."""
        others = [name for name in DAYS if name != DAYS[day]]
        spans = [f"00:00-{hour:02d}:00"] * (hour > 0) + [f"{hour + 1:02d}:00-24:00"] * (hour < 23)
        text = (
            f'currency = "eur"\n[most]\ndays = {others}\nprice = 1\n[some]\ndays = "{DAYS[day]}"\n'
        )
        assert f"{DAYS[day]} {hour:02d}:00 is in no period" in refused(
            f"{text}hours = {spans}\nprice = 2"
        )

    def test_a_machine_without_zones_says_so(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Some small systems have no tzdata: then that is what is missing."""
        zoneinfo.ZoneInfo.clear_cache()
        zoneinfo.reset_tzpath([str(tmp_path)])
        # None in sys.modules: the package cannot be imported, if it is there; nor its parts that
        # were imported before.
        parts = [name for name in sys.modules if name.startswith("tzdata.")]
        for name in ["tzdata", *parts]:
            monkeypatch.setitem(sys.modules, name, None)
        try:
            with pytest.raises(
                InvalidValue, match="knows no time zones: install the package tzdata"
            ):
                zone_of("Europe/Berlin")
        finally:
            zoneinfo.reset_tzpath()
        assert zone_of("UTC") is timezone.utc

    def test_a_file_is_named(self, tmp_path: Path) -> None:
        """Whether it is missing, no text, or no tariff."""
        path = tmp_path / "tariff.toml"
        with pytest.raises(InvalidValue, match=r"tariff\.toml: cannot be read: No such file"):
            read_tariff(path)
        path.write_bytes(b"\xff")
        with pytest.raises(InvalidValue, match=r"tariff\.toml: expected text in UTF-8"):
            read_tariff(path)
        path.write_text("[peak]")
        with pytest.raises(InvalidValue, match=r"tariff\.toml: currency: expected text"):
            read_tariff(path)
        path.write_text(TWO)
        assert read_tariff(path) == parse_tariff(TWO)
