"""A month in which everything goes wrong, from a seed: in the end Stripe has what was used.

python3 integrations/billing/tests/soak.py --seeds 100 --steps 200

Readings come late, answers are lost, runs are killed, clocks jump, files are pruned and restored,
readings and meters are deleted, devices change hands, and another file bills the same customer, by
a copy of the ledger or by one of its own. A person decides conflicts, some of them, and lets one
ledger take over from the other.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    _HERE = Path(__file__).resolve()
    sys.path[:0] = [str(_HERE.parents[1]), str(_HERE.parents[3])]

import stripe
from fragile import FragileManager, FragileTransport, Fuse, Killed
from loopback import FakeTransport, Loopback
from power_billing import BillingError, FindingKind, Report, link, unlink
from power_billing.claims import take_over
from power_billing.decisions import keep_theirs, send_ours, undecided
from power_billing.findings import findings
from power_billing.hours import hour_of, oldest_billable
from power_billing.ledger import LOOK_BACK_DAYS
from power_billing.links import links_of
from power_billing.outbox import State, revisions
from power_billing.periods import event_name_of
from power_billing.sinks import EVENT_NAME
from power_billing.sources import NANO
from power_billing.tables import tables
from power_billing.tariff_file import parse_tariff
from power_billing.usage import Run
from tariffs import set_tariff
from world import HOUR, MAX_GAP, World, outbox

from power_manager import NotFound, PowerManagerError, restore_database

SHARED = "cus_Shared"  # billed from two files
CUSTOMERS = ("cus_Nf1XyzAbc", "cus_Other")
DEVICES = ("edge", "twin", "lone")
BY_TURNS = """
zone = "Europe/Berlin"
currency = "eur"
[day]
hours = ["00:00-07:00", "14:00-21:00"]
price = 0.34
[night]
price = 0.20
"""
FAULTS = ("lost-before", "lost-after", "500-before", "500-after", "429-before", "400-before")


class WatchedStripe(Loopback):
    """A Stripe that minds what is replaced: only what the file that sends it knows of may be."""

    site: Site  # the one that is sending

    def _take(self, values: dict[str, str], timestamp: int, key: str) -> dict[str, Any]:
        customer, hour = values["payload[stripe_customer_id]"], timestamp // 3600
        before = self.hours(customer).get(hour, 0)
        answer = super()._take(values, timestamp, key)
        # Where neither the identifier nor the summary shows it, the other file's comparison does, a
        # day later.
        is_seen = self.summaries_work and not self.site.is_batched
        if is_seen and before not in self.site.known(customer, hour):
            raise AssertionError(f"{values} takes the place of {before} Wh of somebody else's")
        return answer


class Site(World):
    """A file whose clock may be wrong, at a Stripe that it may share."""

    def __init__(self, db: Path, server: Loopback | None = None) -> None:
        self.fuse = Fuse()
        self.is_batched = False
        super().__init__(db)
        self.watched = WatchedStripe(lambda: self.true_now)
        self.server = server or self.watched

    def known(self, customer: str, hour: int) -> set[int]:
        """What this file has sent of the hour, or what a person has seen there; and nothing."""
        with tables(self.pm) as conn:
            rows = revisions(conn, customer, hour)
        values = {row.event.watt_hours for row in rows if row.attempted_at is not None}
        values |= {row.event.watt_hours for row in rows if row.state in (State.SENT, State.KEPT)}
        decided = {row.theirs_wh or 0 for row in rows if row.state is State.QUEUED}
        return values | decided | {0}

    def counted(self) -> dict[tuple[str, str, int], int]:
        """What was taken into account, by customer, device and hour."""
        with tables(self.pm) as conn:
            sql = "SELECT customer, device_id, hour, counted_nwh FROM billing_device_hours"
            return {
                (customer, device_id, hour): nwh
                for customer, device_id, hour, nwh in conn.execute(sql)
            }

    def open(self, db: Path | str) -> None:
        """As World's, with a manager whose process can end."""
        self.pm = FragileManager(db, max_gap=MAX_GAP, clock=lambda: self.now, durability="normal")
        self.pm.fuse = self.fuse
        self.devices = self.pm
        self.usage = Run(self.pm, clock=lambda: self.now, sleep=self.slept.append)

    def transport(self, server: Loopback) -> FakeTransport:
        """One that the fuse can end."""
        return FragileTransport(server, self.fuse)


@dataclass
class Story:
    """One month from a seed. `done` counts what happened, for people."""

    seed: int
    folder: Path
    is_alone: bool = False  # nobody else sends what is this file's: then there is nothing to decide
    has_tariff: bool = False  # hours are on two meters, by turns of seven hours
    is_copy: bool = False  # the other file's ledger has the same id
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.site = Site(self.folder / f"{self.seed}.db")
        self.stripe = self.site.watched
        self.stripe.newest_by = self.random.choice(["receipt", "timestamp"])
        self.backups: list[Path] = []
        self.names: list[str] = []  # of meters, by which the world knows them
        for device in DEVICES:
            self.add_device(device)
        self.link("edge", CUSTOMERS[0])
        self.link("twin", CUSTOMERS[0])
        self.link("lone", CUSTOMERS[1] if self.is_alone else SHARED)
        if self.has_tariff:
            set_tariff(self.site, BY_TURNS)
        self.site.sink()
        self.other = Site(self.folder / f"{self.seed}-other.db", self.site.server)
        self.other.link("edge", SHARED)
        if self.has_tariff:
            set_tariff(self.other, BY_TURNS)
        else:
            self.other.setup_from(self.site)
        if self.is_copy:
            self.other.copy_id_from(self.site)
        self.site.server.clock = lambda: self.site.true_now

    def close(self) -> None:
        """Close the files."""
        self.site.pm.close()
        self.other.pm.close()

    # --- What may happen

    def add_device(self, device: str) -> None:
        """With a meter or two of any kind."""
        for kind in ("main", self.random.choice(["battery", "ups", "solar"])):
            with suppress(PowerManagerError):
                self.site.pm.register_device(device, device)
            self.site.meters[f"{device} {kind}"] = self.site.pm.add_meter(device, kind).id

    def link(self, device: str, customer: str, hours_ago: float = 24 * 3) -> None:
        """From some hours ago on."""
        since = self.site.true_now - hours_ago * HOUR
        link(self.site.pm, device, customer, since=since, clock=lambda: self.site.true_now)

    def use(self) -> None:
        """Somebody used something, lately or some days ago."""
        site = self.random.choice([self.site, self.site, self.other])
        name = self.random.choice(list(site.meters))
        hours = self.random.choice([1, 1, 1, 2, 3, 5, 30, 55, 200, 900])
        at = (site.true_now // HOUR - hours) * HOUR + self.random.choice([0.0, 300.0, 900.0])
        watts = self.random.choice([-40.0, 5.0, 12.5, 25.3, 100.0])
        with suppress(NotFound):  # a meter that was deleted
            for second in range(0, self.random.choice([700, 2000, 5000]), 600):
                site.pm.log_power(site.meters[name], watts, 1.0, timestamp=at + second)

    def report(self, *, careful: bool = False) -> Report | None:
        """A run of one of the files, which may meet faults and end anywhere."""
        site = self.random.choice([self.site, self.site, self.other])
        for _ in range(self.random.choice([0, 0, 1, 4])):
            times = self.random.choice([1, 3, 12])
            site.server.faults.extend([self.random.choice(FAULTS)] * times)
        site.server.summaries_work = self.random.random() > 0.1
        if self.random.random() < 0.25:
            site.fuse.left = self.random.randrange(60)
        done = None
        try:
            done = self.run(site, retry_refused=self.random.random() < 0.3)
        except Killed:
            self.done["kills"] += 1
        self.done["faults"] += 1
        site.fuse.left = None
        site.server.faults.clear()
        site.server.summaries_work = True
        return done

    def run(self, site: Site, retry_refused: bool = False, compare: bool = False) -> Report | None:
        """A run that may find that it cannot go on."""
        self.stripe.site = site
        with suppress(BillingError):
            site.is_batched = self.random.random() < 0.3
            sink = site.sink(stream=site.is_batched)
            return site.usage.report(sink, retry_refused=retry_refused, compare=compare)
        return None

    def report_by_a_wrong_clock(self) -> None:
        """The machine thinks that it is another time."""
        hours = self.random.choice([-2000, -30, -1, 1, 30, 2000, 9000])
        self.site.now = self.site.true_now + hours * HOUR
        self.run(self.site)
        self.site.now = self.site.true_now

    def back_up(self) -> None:
        """For a restore on another day."""
        path = self.folder / f"{self.seed}-{len(self.backups)}.backup"
        self.site.pm.backup(path)
        self.backups.append(path)

    def restore(self) -> None:
        """One of the last backups takes the file's place."""
        if not self.backups:
            return
        path = self.site.pm.db_path
        self.site.pm.close()
        restore_database(path, self.random.choice(self.backups[-2:]))
        self.site.open(path)

    def prune(self) -> None:
        """Readings of some days ago go; their statistics stay."""
        self.site.pm.prune(self.random.choice([2, 5, 20]))

    @contextmanager
    def _nothing_is_taken_back(self) -> Iterator[None]:
        """What was billed of what is deleted stays billed."""
        self.run(self.site)
        before = self.site.counted()
        yield
        self.run(self.site)
        after = self.site.counted()
        assert {key: after.get(key, 0) for key in before} == before

    def delete_readings(self) -> None:
        """Some hours of one meter."""
        name = self.random.choice(list(self.site.meters))
        begin = self.site.true_now - self.random.choice([5, 40]) * HOUR
        with self._nothing_is_taken_back(), suppress(NotFound, PowerManagerError):
            self.site.pm.delete_readings(
                self.site.meters[name], since=begin, until=begin + 2 * HOUR
            )

    def delete_meter(self) -> None:
        """And one of its kind comes in its place."""
        name = self.random.choice(list(self.site.meters))
        device, kind = name.split()[0], name.split()[-1]
        # Without its main meter a device's ups counts from now on, with what came late of it too.
        is_plain = kind != "main" or f"{device} ups" not in self.site.meters
        minded = self._nothing_is_taken_back() if is_plain else nullcontext()
        with minded, suppress(NotFound):
            self.site.pm.delete_meter(self.site.meters[name])
        with suppress(PowerManagerError):
            self.site.meters[name] = self.site.pm.add_meter(device, kind).id

    def move(self) -> None:
        """A device changes hands."""
        device = self.random.choice(DEVICES[:2])
        with suppress(BillingError, NotFound):
            unlink(self.site.pm, device, clock=lambda: self.site.true_now)
        with suppress(BillingError, NotFound):
            self.link(device, self.random.choice(CUSTOMERS), hours_ago=-1)

    def decide(self) -> None:
        """A person looks at the conflicts of one of the files."""
        site = self.random.choice([self.site, self.other])
        listed = undecided(site.pm, oldest_billable(site.true_now))
        if self.random.random() < 0.5:
            send_ours(site.pm, listed.conflicts)
        else:
            keep_theirs(site.pm, listed)

    def take_over(self) -> None:
        """A person lets one of the files bill the shared customer."""
        site = self.random.choice([self.site, self.other])
        with suppress(BillingError):
            take_over(site.pm, site.sink(), SHARED, site.true_now)

    def pass_time(self, hours: float) -> None:
        """For both files, and for Stripe."""
        for site in (self.site, self.other):
            site.true_now += hours * HOUR
            site.now = site.true_now

    # --- The month, and its end

    def live(self, steps: int) -> None:
        """One thing after the other."""
        often: list[Callable[[], object]] = [self.use] * 12 + [self.report] * 6
        seldom: list[Callable[[], object]] = [
            self.report_by_a_wrong_clock,
            self.prune,
            self.delete_readings,
            self.delete_meter,
            self.move,
        ]
        if not self.is_alone:
            seldom += [self.back_up, self.restore, self.decide, self.take_over]
        for _ in range(steps):
            step = self.random.choice(often + seldom)
            step()
            self.done[step.__name__] += 1
            self.pass_time(self.random.choice([0, 0.3, 1, 1, 4, 9]))
        self.pass_time(1)
        for hours in (2, 25, 25):
            self.pass_time(hours)
            for site in (self.site, self.other):
                self.run(site, retry_refused=True)

    def check(self) -> None:
        """Everything that is sent is what was used; everything that is not is listed."""
        for site in (self.site, self.other):
            done = self.run(site, compare=True)
            assert done is not None
            _check_hours(site, done)
            if self.is_alone:
                assert done.open == []
                assert done.reconciliation is not None
                assert done.reconciliation.differences == []
            _check_sums(site)
            assert site.pm.check() == []
            if self.has_tariff:
                _check_meters(site)


def _check_hours(site: Site, done: Report) -> None:
    """Each hour of each customer is at Stripe as it is in the ledger, or is listed."""
    listed = {(entry.event.customer, entry.event.hour) for entry in (*done.open, *done.too_old)}
    assert done.reconciliation is not None
    listed |= {(one.customer, one.hours.start) for one in done.reconciliation.differences}
    ledger: dict[tuple[str, int], int] = {}
    for entry in outbox(site.pm):
        key = (entry.event.customer, entry.event.hour)
        ledger[key] = entry.event.watt_hours
        if entry.state is State.LOST:  # somebody has left it to the other ledger
            listed.add(key)
    first = oldest_billable(site.now)
    for customer in {customer for customer, _ in ledger} - set(done.reconciliation.unsaid):
        theirs = site.server.hours(customer)
        for hour in {hour for one, hour in ledger if one == customer} | set(theirs):
            if hour < first or (customer, hour) in listed:
                continue
            ours = ledger.get((customer, hour), 0)
            assert theirs.get(hour, 0) == ours, (customer, hour)


def _check_meters(site: Site) -> None:
    """Each hour is on its period's meter, and on no other."""
    tariff = parse_tariff(BY_TURNS)
    for customer in (*CUSTOMERS, SHARED):
        for event_name, by_hour in site.server.meter_hours(customer).items():
            for hour in by_hour:
                expected = event_name_of(EVENT_NAME, tariff.period_of(hour))
                assert event_name == expected, (customer, hour)


def _check_sums(site: Site) -> None:
    """Compare the ledger with the file's statistics by device and day, beside what is listed."""
    with tables(site.pm) as conn:
        counted: Counter[tuple[str, str, int]] = Counter()
        sql = "SELECT customer, device_id, hour, counted_nwh FROM billing_device_hours"
        for customer, device, hour, nwh in conn.execute(sql):
            counted[customer, device, hour // 24] += nwh
        wholes = dict(
            conn.execute("SELECT customer, sum(whole_wh) FROM billing_hours GROUP BY customer")
        )
        exact = dict(
            conn.execute("SELECT customer, sum(counted_nwh) FROM billing_hours GROUP BY customer")
        )
        totals = dict(conn.execute("SELECT customer, billed_wh FROM billing_totals"))
        found = findings(conn)
    assert wholes == {customer: nwh // NANO for customer, nwh in exact.items()}
    assert {customer: wh for customer, wh in totals.items() if customer in wholes} == wholes
    used = _used(site)
    listed: Counter[tuple[str, str, int]] = Counter()
    for one in found:  # what somebody has accepted, too
        if one.kind in (FindingKind.LATE, FindingKind.KEPT, FindingKind.UNCLEAR):
            listed[one.customer, one.device_id, one.hour // 24] += round(one.watt_hours * NANO)
    # What came to light of hours before these is found by the first run of a month.
    first_day = int(site.now // HOUR) // 24 - LOOK_BACK_DAYS + 1
    for key in {*counted, *used, *listed}:
        _, _, day = key
        if day < first_day:
            continue
        difference = counted[key] + listed[key] - used[key]
        assert abs(difference) < 10, (key, counted[key], listed[key], used[key])


def _used(site: Site) -> Counter[tuple[str, str, int]]:
    """The file's statistics by customer, device and day; a ups only while there is no main."""
    found: Counter[tuple[str, str, int]] = Counter()
    with tables(site.pm) as conn:
        sql = "SELECT device_id, min(first_hour) FROM billing_meters WHERE type = 'main' GROUP BY 1"
        main_since = dict(conn.execute(sql))
    for one in links_of(site.pm):
        meters = site.pm.list_meters(one.device_id)
        has_main = any(meter.type == "main" for meter in meters)
        for meter in meters:
            is_in_line = meter.type == "ups" and has_main
            for row in site.pm.get_statistics(meter.id, days=400):
                hour = hour_of("start", row.start)
                if is_in_line and hour >= main_since.get(one.device_id, hour + 1):
                    continue
                if one.covers(hour) and hour < site.now // HOUR:
                    nwh = round(row.energy_out_wh * NANO) - round(row.energy_in_wh * NANO)
                    found[one.customer, one.device_id, hour // 24] += nwh
    return found


def run_story(seed: int, steps: int, folder: Path) -> Counter[str]:
    """Live a month and check its end; what happened in it."""
    stripe.HTTPClient.INITIAL_DELAY = 0.0
    stripe.HTTPClient.MAX_DELAY = 0
    story = Story(
        seed, folder, is_alone=seed % 2 == 1, is_copy=seed % 4 == 2, has_tariff=seed % 8 > 3
    )
    try:
        story.live(steps)
        story.check()
    finally:
        story.close()
    return story.done


def main() -> None:
    """Live many months."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="how many months (default: 20)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--steps", type=int, default=150, help="of each (default: 150)")
    options = parser.parse_args()
    begin = time.perf_counter()
    done: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            try:
                done += run_story(seed, options.steps, Path(folder))
            except BaseException:
                print(f"seed {seed}")
                raise
    seconds = time.perf_counter() - begin
    print(f"{options.seeds} months of {options.steps} steps, {seconds:.0f} s, no difference")
    for name, count in sorted(done.items()):
        print(f"  {name}: {count}")


if __name__ == "__main__":
    main()
