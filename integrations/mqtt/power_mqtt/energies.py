"""The energy message of each device: counters that only go up, for programs that add them up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from power_manager import NotFound, PowerManager, PowerMeter, StorageError
from power_mqtt.counters import TIME_FIELD, Counters, read_message
from power_mqtt.known import Owner
from power_mqtt.mirror import Retained
from power_mqtt.parts import Look, QuietPart, Rules, Said
from power_mqtt.payloads import json_bytes
from power_mqtt.topics import Topics

# Between two energy messages of a device, at least. Home Assistant adds up every five minutes.
INTERVAL_SECONDS = 30.0
TROUBLE_SECONDS = 60.0  # after which a file that failed is tried again
_log = logging.getLogger("power_mqtt")


@dataclass
class _Told:
    """An energy message, the counters and the meters' states it was made from, and when."""

    counters: dict[str, Any]
    states: list[PowerMeter]
    said: Said
    made_at: float
    asked_at: float


class Energies(QuietPart):
    """What each device and each of its meters has used since its first reading; see Counters.

    What the broker retains is read first: no counter may be published below it.
    """

    def __init__(
        self,
        pm: PowerManager,
        topics: Topics,
        rules: Rules,
        device_ids: Callable[[], Iterable[str]],
        counters: Counters | None = None,
    ) -> None:
        self._pm = pm
        self._topics = topics
        self._expire = rules.expire
        self._wire_interval = rules.interval  # so that clearing a topic does not wait for longer
        self._interval = max(rules.interval, INTERVAL_SECONDS)
        self._device_ids = device_ids
        self._counters = counters or Counters()
        self._is_heard = False
        self._devices: dict[str, str] = {}  # whose energy message is where
        # The devices whose hours are still to be read, and their meters.
        self._unread: dict[str, list[PowerMeter]] = {}
        self._told: dict[str, _Told] = {}
        self._not_before = 0.0
        self._trouble = ""

    def filters(self) -> Sequence[str]:
        """The energy messages, as they were published last."""
        self._devices = {self._topics.energy(id_): id_ for id_ in self._device_ids()}
        return list(self._devices)

    def arrived(self, topic: str, payload: bytes, is_retained: bool) -> bool:
        """Take note of what was published last."""
        device_id = self._devices.get(topic)
        if is_retained and device_id is not None:
            published = read_message(device_id, payload)
            if published is not None:
                self._counters.recall(device_id, published)
        return False

    def heard(self) -> None:
        """Publish the counters from here on."""
        self._is_heard = True

    def restored(self) -> None:
        """Reset the counters at once: what is measured from now on counts."""
        self._told.clear()
        self._counters.check_line(self._pm)

    def end(self) -> None:
        """Save the counters."""
        self._counters.save(self._pm)

    def messages(self, look: Look) -> Iterator[Said]:
        """One message, for a device whose meters have measured something."""
        topic = self._topics.energy(look.device.id)
        left = Said(Retained(topic, b""), Owner(look.device.id), is_left=True)
        if not self._is_heard:
            yield left
            return
        if all(meter.updated_at is None for meter in look.meters):
            self._told.pop(look.device.id, None)
            return
        told = self._told.get(look.device.id)
        if not self._counters.is_ready(look.device.id, look.meters):
            self._unread[look.device.id] = list(look.meters)
        elif look.now >= self._not_before:
            told = self._try_to_tell(told, look)
        yield left if told is None else told.said

    def work(self) -> bool:
        """Read one meter of a device whose hours are still to be read; return whether it did."""
        for device_id, meters in self._unread.items():
            try:
                is_ready = self._counters.prepare(self._pm, device_id, meters)
            except NotFound:
                is_ready = True  # the next look has other meters
            if is_ready:
                del self._unread[device_id]
            return True
        return False

    def _try_to_tell(self, told: _Told | None, look: Look) -> _Told | None:
        """The message as it is now, or as it was if the file cannot be read or written."""
        try:
            self._counters.keep_up(self._pm)
            if told is None or self._is_due(told, look):
                return self._tell(told, look)
        except NotFound:
            pass  # a meter was deleted since the meters were read: the next look has the others
        except StorageError as error:
            # Everything else is still published while another program holds the file up.
            self._not_before = look.now + TROUBLE_SECONDS
            if str(error) != self._trouble:
                _log.error("%s; the energy counters wait for it", error)
            self._trouble = str(error)
            return told
        self._trouble = ""
        return told

    def _is_due(self, told: _Told, look: Look) -> bool:
        """Whether something was measured since, or a meter was added or deleted."""
        if [meter.id for meter in told.states] != [meter.id for meter in look.meters]:
            return True
        if look.now - told.asked_at < self._interval:
            return False
        pairs = zip(told.states, look.meters)
        return any(before.updated_at != after.updated_at for before, after in pairs)

    def _tell(self, told: _Told | None, look: Look) -> _Told:
        counters = self._counters.message(self._pm, look.device.id, look.meters)
        states = list(look.meters)
        if told is not None and self._has_said(told, counters, look.now):
            new = _Told(told.counters, states, told.said, told.made_at, look.now)
        else:
            payload = json_bytes(counters)
            message = Retained(self._topics.energy(look.device.id), payload, self._wire_interval)
            said = Said(message, Owner(look.device.id))
            new = _Told(counters, states, said, look.now, look.now)
        self._told[look.device.id] = new
        return new

    def _has_said(self, told: _Told, counters: dict[str, Any], now: float) -> bool:
        """Whether the last message says the same, and is not so old that it may soon expire."""
        same = {**told.counters, TIME_FIELD: counters[TIME_FIELD]} == counters
        return same and now - told.made_at < self._expire / 2

    def forget(self, device_id: str) -> None:
        """Drop what was said of it."""
        self._told.pop(device_id, None)
        self._unread.pop(device_id, None)
