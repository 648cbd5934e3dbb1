"""What the bridge publishes of each device, part by part, as retained messages.

At every look at the file each part says what its topics are to hold now, and the mirror sends what
differs. A topic that no part names any more is cleared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from power_manager import SECOND_US, DeviceRecord, PowerMeter, to_microseconds
from power_mqtt.known import Owner
from power_mqtt.mirror import Retained
from power_mqtt.payloads import OFFLINE, ONLINE, json_bytes, state_payload, totals_payload
from power_mqtt.topics import Topics

_POINTS = 1.0  # points of charge; with --min-change, less is no change


@dataclass(frozen=True)
class Rules:
    """When a value is published again."""

    interval: float = 5.0  # seconds between two messages of a meter, at least
    min_change: float = 0.0  # W; 0: any change of volts, amperes or charge
    expire: float = 600.0  # seconds without a reading after which a device is offline


@dataclass(frozen=True)
class Look:
    """What the file says of a device now.

    `removed_meter_ids`: deleted meters of which something may still be retained.
    `now`: seconds of a clock that cannot be set; `wall`: seconds since 1970.
    """

    device: DeviceRecord
    meters: Sequence[PowerMeter]
    removed_meter_ids: Sequence[str]
    now: float
    wall: float


@dataclass(frozen=True)
class Said:
    """A retained message and its owner. is_left: what the broker holds there stays for now."""

    message: Retained
    owner: Owner
    is_left: bool = False


class Part(Protocol):
    """Something that is published of each device."""

    def filters(self) -> Sequence[str]:
        """The broker's topics that this part listens to."""

    def connected(self) -> None:
        """The broker has greeted, and is about to send what it retains."""

    def arrived(self, topic: str, payload: bytes, is_retained: bool) -> bool:
        """A message on a topic of any part's filters; return whether to send everything again."""

    def heard(self) -> None:
        """The broker has sent all that it retains."""

    def restored(self) -> None:
        """A backup was restored into the file."""

    def messages(self, look: Look) -> Iterable[Said]:
        """What the topics of a device are to hold now; returning the same object costs least."""

    def work(self) -> bool:
        """Do some hundredths of a second of what takes long; return whether there was any."""

    def forget(self, device_id: str) -> None:
        """The device is deleted, or no longer published."""

    def end(self) -> None:
        """The program ends."""


class QuietPart:
    """A part that listens to nothing."""

    def filters(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def connected(self) -> None:
        """Nothing changes."""

    def arrived(self, topic: str, payload: bytes, is_retained: bool) -> bool:
        """Not for this part."""
        return False

    def heard(self) -> None:
        """Nothing waited for it."""

    def restored(self) -> None:
        """The next look reads what is new."""

    def work(self) -> bool:
        """Nothing takes long."""
        return False

    def end(self) -> None:
        """There is nothing to save."""


# --- States


@dataclass
class _Shown:
    """A meter as it was published last."""

    meter: PowerMeter
    said: Said
    made_at: float


class States(QuietPart):
    """The present state of every meter that has one."""

    def __init__(self, topics: Topics, rules: Rules) -> None:
        self._topics = topics
        self._rules = rules
        self._shown: dict[str, dict[str, _Shown]] = {}  # by device and meter

    def messages(self, look: Look) -> Iterator[Said]:
        """A message for each meter that has measured something."""
        shown = self._shown.setdefault(look.device.id, {})
        for meter in look.meters:
            if meter.updated_at is not None:
                yield self._said(shown, meter, look.now)
        present = {meter.id for meter in look.meters if meter.updated_at is not None}
        for meter_id in shown.keys() - present:
            del shown[meter_id]

    def _said(self, shown: dict[str, _Shown], meter: PowerMeter, now: float) -> Said:
        last = shown.get(meter.id)
        if last is not None and not self._is_news(last, meter, now):
            return last.said
        topic = self._topics.state(meter.device_id, meter.id)
        message = Retained(topic, json_bytes(state_payload(meter)), self._rules.interval)
        said = Said(message, Owner(meter.device_id, meter.id))
        shown[meter.id] = _Shown(meter, said, now)
        return said

    def _is_news(self, last: _Shown, meter: PowerMeter, now: float) -> bool:
        if meter == last.meter:
            return False
        # Unchanged values are published now and then, because listeners may let them expire.
        if now - last.made_at >= self._rules.expire / 2:
            return True
        return _is_change(last.meter, meter, self._rules.min_change)

    def forget(self, device_id: str) -> None:
        """Drop what was shown of it."""
        self._shown.pop(device_id, None)


def _is_change(before: PowerMeter, after: PowerMeter, min_change: float) -> bool:
    """Whether two states of a meter differ enough to be published; time alone does not count."""
    if _what_always_counts(before) != _what_always_counts(after):
        return True
    points = 0.0
    if before.charge_pct is not None and after.charge_pct is not None:
        points = abs(after.charge_pct - before.charge_pct)
    if min_change == 0:
        electrical = (before.voltage, before.current_draw) != (after.voltage, after.current_draw)
        return electrical or points > 0
    watts = abs((after.wattage or 0.0) - (before.wattage or 0.0))
    return watts >= min_change or points >= _POINTS


def _what_always_counts(meter: PowerMeter) -> tuple[object, ...]:
    return (
        meter.name,
        meter.type,
        meter.capacity_wh,
        meter.active,
        meter.power_known,
        meter.alert_level,
        meter.state,
        meter.charge_pct is None,
    )


# --- Totals


@dataclass
class _Totals:
    """The totals of a device as they were published last, and the states they were made from."""

    states: list[PowerMeter]
    device: DeviceRecord
    is_online: bool
    said: Said
    made_at: float


class Totals(QuietPart):
    """What each device uses as a whole; `budget`: the library's power_budget_check().

    `is_online`: whether a device was read within `expire`. For how long one lasts that was not is
    unknown.

    It takes some queries, so it is computed only when a meter's state has changed, and at most once
    an interval.
    """

    def __init__(
        self,
        topics: Topics,
        rules: Rules,
        budget: Callable[[Iterable[str]], Mapping[str, Mapping[str, Any]]],
        is_online: Callable[[Look], bool],
    ) -> None:
        self._topics = topics
        self._rules = rules
        self._budget = budget
        self._is_online = is_online
        self._totals: dict[str, _Totals] = {}

    def messages(self, look: Look) -> Iterator[Said]:
        """One message, for a device whose meters have measured something."""
        if all(meter.updated_at is None for meter in look.meters):
            self._totals.pop(look.device.id, None)
            return
        last = self._totals.get(look.device.id)
        is_online = self._is_online(look)
        if last is not None and last.is_online == is_online and not self._is_news(last, look):
            yield last.said
            return
        budget = self._budget([look.device.id])[look.device.id]
        if "error" in budget:
            return  # the device was deleted since the devices were read
        message = Retained(
            self._topics.totals(look.device.id),
            json_bytes(totals_payload(budget, is_online=is_online)),
            self._rules.interval,
        )
        said = Said(message, Owner(look.device.id))
        totals = _Totals(list(look.meters), look.device, is_online, said, look.now)
        self._totals[look.device.id] = totals
        yield said

    def _is_news(self, last: _Totals, look: Look) -> bool:
        age = look.now - last.made_at
        if age < self._rules.interval:
            return False
        if look.device != last.device or len(look.meters) != len(last.states):
            return True
        pairs = list(zip(last.states, look.meters))
        if any(before.id != after.id for before, after in pairs):
            return True
        if age >= self._rules.expire / 2 and any(before != after for before, after in pairs):
            return True
        return any(_is_change(before, after, self._rules.min_change) for before, after in pairs)

    def forget(self, device_id: str) -> None:
        """Drop what was shown of it."""
        self._totals.pop(device_id, None)


# --- Availability


@dataclass
class _Heard:
    """When a device was last read, by the clock that cannot be set."""

    times: dict[str, str | None] = field(default_factory=dict)  # of each meter's state
    at: float | None = None


class Availability(QuietPart):
    """Whether a device is online: one of its meters was read within `expire`."""

    def __init__(self, topics: Topics, rules: Rules) -> None:
        self._topics = topics
        self._rules = rules
        self._heard: dict[str, _Heard] = {}
        self._said: dict[tuple[str, bytes], Said] = {}

    def messages(self, look: Look) -> Iterator[Said]:
        """One message for each device."""
        yield self._message(look.device.id, ONLINE if self.is_online(look) else OFFLINE)

    def is_online(self, look: Look) -> bool:
        """Whether the device was read within `expire`."""
        heard = self._heard.setdefault(look.device.id, _Heard())
        for meter in look.meters:
            if meter.updated_at is None or meter.updated_at == heard.times.get(meter.id):
                continue
            # When a reading comes, its age is taken from its own time, because an imported log is
            # old. From then on it ages by a clock that cannot be set. One from the future is new.
            age = max(look.wall - to_microseconds(meter.updated_at) / SECOND_US, 0.0)
            at = look.now - age
            heard.at = at if heard.at is None else max(heard.at, at)
        heard.times = {meter.id: meter.updated_at for meter in look.meters}
        return heard.at is not None and look.now - heard.at < self._rules.expire

    def _message(self, device_id: str, payload: bytes) -> Said:
        said = self._said.get((device_id, payload))
        if said is None:
            said = Said(Retained(self._topics.availability(device_id), payload), Owner(device_id))
            self._said[device_id, payload] = said
        return said

    def forget(self, device_id: str) -> None:
        """Drop when it was read."""
        self._heard.pop(device_id, None)
        for payload in (ONLINE, OFFLINE):
            self._said.pop((device_id, payload), None)
