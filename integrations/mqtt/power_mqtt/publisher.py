"""What a bridge does: it looks at the file, and sends the broker what has changed.

One thread looks at the file several times a second, which costs little while nothing has changed,
and takes the notices of the connection. Events wait in the file until the broker has acknowledged
them; of everything else only the latest counts, and the mirror keeps it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from power_manager import PowerManager, PowerManagerError, printable
from power_mqtt.devices import Devices
from power_mqtt.discovery import Discovery, Site
from power_mqtt.energies import Energies
from power_mqtt.errors import MqttError
from power_mqtt.events import EventFeed
from power_mqtt.ghosts import Ghosts
from power_mqtt.known import KnownTopics, Owner
from power_mqtt.mirror import Mirror, Publish, Retained
from power_mqtt.notices import Acknowledged, Arrived, Down, Notice, Up
from power_mqtt.options import Options
from power_mqtt.others import Others
from power_mqtt.parts import Availability, Look, Part, Said, States, Totals
from power_mqtt.payloads import OFFLINE, ONLINE
from power_mqtt.place import check_place
from power_mqtt.suspicion import Suspicion

POLL_SECONDS = 0.2  # between two questions whether the file has changed
LOOK_SECONDS = 1.0  # between two looks at all meters, at least
QUIET_LOOK_SECONDS = 5.0  # the same while the file does not change: a device may fall silent
ACKNOWLEDGE_SECONDS = 60.0  # a broker that acknowledges nothing for so long is left
WORK_SECONDS = 0.05  # between two looks, for what takes long
HEAR_SECONDS = 10.0  # after the greeting a broker has sent what it retains, or never will
TROUBLE_SECONDS = 60.0  # an error of the file is logged again after so long without it
# A look waits this many times as long as the last one has computed: thousands of meters take long.
_LOOK_SHARE = 20
_ENDS = "it ends the connection at once, so it may not be allowed"
_log = logging.getLogger("power_mqtt")


def boot_time() -> float:
    """Seconds of a clock that cannot be set; on Linux it also runs while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Publisher:
    """Publishes a file: `handle` takes what the connection says, `tick` looks at the file.

    `clock` cannot be set, and only its differences count; `wall` is the time since 1970.
    """

    def __init__(
        self,
        pm: PowerManager,
        options: Options,
        publish: Publish,
        *,
        clock: Callable[[], float] = boot_time,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._pm = pm
        self._options = options
        self._clock = clock
        self._wall = wall
        self._topics = options.topics()
        self._known = KnownTopics(pm, options.key)
        self._ghosts = Ghosts(pm, self._topics, self._known)
        self._others = Others(pm, self._topics, self._known)
        self._cleared: list[str] = []
        self._mirror = Mirror(publish, self._cleared.append)
        self._devices = Devices(pm, options)
        self._events = EventFeed(
            pm,
            options.key,
            self._topics,
            publish,
            wants=options.wants,
            meter_name=self._devices.meter_name,
        )
        self.parts = make_parts(pm, options)
        self._file_id = pm.file_id
        self._version: int | None = None
        self._is_stale = True  # the file has changed since its devices and meters were read
        self._next_look = 0.0
        self._next_poll = 0.0
        self._is_up = False
        self._is_heard = False  # the broker has sent what it retained when this program came
        self._up_since = 0.0
        self._was_refused = False  # the broker has refused a message, and said so, since it greeted
        self._suspicion = Suspicion()
        self._progress_at = 0.0  # when the broker last acknowledged something, or had nothing to
        self._trouble = ""  # the last error of the file
        self._trouble_at = 0.0
        self._last_words: list[Retained] = []

    # --- What the connection says

    def filters(self) -> list[str]:
        """The broker's topics that the bridge listens to. Raises StorageError."""
        filters = [self._options.availability()]
        for part in self.parts:
            filters += part.filters()
        filters += self._others.filters(filters)
        return filters + self._ghosts.filters()

    def handle(self, notice: Notice) -> None:
        """Take a notice of the connection; Stop is the caller's."""
        now = self._clock()
        match notice:
            case Up():
                self._come_up(now)
            case Down():
                if self._is_up:
                    self._suspect(now)
                self._is_up = False
                self._mirror.reset()
                self._events.reset()
            case Acknowledged(ticket, refusal):
                self._progress_at = now
                self._was_refused = self._was_refused or refusal != ""
                if not self._mirror.acknowledge(ticket, refusal, now):
                    self._events.acknowledge(ticket, refusal, now)
            case Arrived(topic, payload, is_retained):
                self._hear(topic, payload, is_retained)

    def _come_up(self, now: float) -> None:
        self._is_up = True
        self._up_since = now
        self._was_refused = False
        self._progress_at = now
        self._mirror.reset()
        self._events.reset()
        self._look_at_once()
        for part in self.parts:
            part.connected()

    def _suspect(self, now: float) -> None:
        """Hold back the message that makes the broker end the connection, if there is one."""
        oldest = min(filter(None, (self._mirror.oldest(), self._events.oldest())), default=None)
        topic = None if oldest is None or self._was_refused else oldest[1]
        if self._suspicion.ended(topic, now - self._up_since) and oldest is not None:
            is_event = oldest == self._events.oldest()
            (self._events if is_event else self._mirror).refuse(oldest[1], _ENDS, now)

    def _look_at_once(self) -> None:
        """Read the file before anything is sent: what is sent must not be older than the file."""
        self._is_stale = True
        self._next_poll = self._next_look = 0.0

    def _hear(self, topic: str, payload: bytes, is_retained: bool) -> None:
        own = self._options.availability()
        if topic == own:
            if not is_retained:  # everything that the broker retains came before it
                self._hear_no_more()
            # The last will of an earlier connection can come late, and say that we are offline.
            self._mirror.contradict(own, payload, self._clock())
            return
        if self._ghosts.arrived(topic, payload, is_retained):
            self._look_at_once()
            return
        self._others.arrived(topic, payload, is_retained)
        for part in self.parts:
            if part.arrived(topic, payload, is_retained):
                self._mirror.resend()

    def _hear_no_more(self) -> None:
        if not self._is_heard:
            self._is_heard = True
            self._look_at_once()
            for part in self.parts:
                part.heard()

    def _wait_no_longer(self, now: float) -> None:
        if not self._is_heard and now - self._up_since >= HEAR_SECONDS:
            _log.warning(
                "the broker does not let this user read %s: what it retains is not known",
                self._options.availability(),
            )
            self._hear_no_more()

    def is_stuck(self) -> bool:
        """Whether the broker has acknowledged nothing for too long, although messages wait."""
        now = self._clock()
        if not self._is_up or (self._mirror.is_quiet() and self._events.is_quiet()):
            self._progress_at = now
        return now - self._progress_at >= ACKNOWLEDGE_SECONDS

    # --- The file

    def tick(self) -> None:
        """Look at the file if it is time, and send what is due.

        An error of the file is logged and tried again. Raises MqttError if another file has taken
        its place.
        """
        now = self._clock()
        try:
            self._forget_cleared()
            if now >= self._next_poll:
                self._next_poll = now + POLL_SECONDS
                self._poll(now)
                self._work()
            if self._is_up:
                self._wait_no_longer(now)
                self._mirror.send(now)
                self._events.send(now)
        except MqttError:
            raise
        except PowerManagerError as error:
            is_news = str(error) != self._trouble or now - self._trouble_at >= TROUBLE_SECONDS
            if is_news:
                _log.error("%s; trying again", error)
            self._trouble = str(error)
            self._trouble_at = now
            self._version = None
            self._next_poll = now + LOOK_SECONDS

    def _poll(self, now: float) -> None:
        check_place(self._pm)
        version = self._pm.data_version()
        if version != self._version:
            self._check_line()
            self._version = version  # from here on `_is_stale` remembers that it has changed
            self._is_stale = True
            self._events.wake()
        pause = 0.0 if self._is_stale else QUIET_LOOK_SECONDS
        if now >= self._next_look + pause:
            self._look(now)

    def _work(self) -> bool:
        """Have the parts do some of what takes long; return whether there was something to do."""
        end = self._clock() + WORK_SECONDS
        has_worked = False
        while any(part.work() for part in self.parts):
            has_worked = True
            if self._clock() >= end:
                break
        if has_worked:
            self._is_stale = True  # the part may have a message now
        return has_worked

    def _check_line(self) -> None:
        """A restored backup has another cursor, and other notes of what was published."""
        file_id = self._pm.file_id
        if file_id != self._file_id:
            _log.warning("%s: a backup was restored into it", self._options.db)
            self._others.restored(self._file_id)
            self._known.load()
            self._events.reset()
            for part in self.parts:
                part.restored()
            self._file_id = file_id

    def _look(self, now: float) -> None:
        """Ask all parts what their topics are to hold, and tell the mirror."""
        began = time.thread_time()
        if self._is_stale:
            self._read_devices()
        self._ghosts.clear()
        said = self._said(now)
        new = {topic: one for topic, one in said.items() if not one.is_left}
        self._known.add({topic: one.owner for topic, one in new.items()})
        for one in new.values():
            self._mirror.want(one.message)
        if self._is_heard:  # before, what is gone may be another node's by now
            self._clear(set(self._known.owners) - said.keys())
        pause = (time.thread_time() - began) * _LOOK_SHARE
        self._next_look = now + max(LOOK_SECONDS, min(pause, self._options.rules.interval))

    def _clear(self, gone: set[str]) -> None:
        """Want what is gone cleared, but for devices that another node publishes now."""
        theirs = {topic for topic in gone if self._is_of_another(self._known.owners[topic])}
        if theirs:
            self._mirror.drop(theirs)
            self._others.leave(theirs)
        own = f"{self._options.prefix}/"
        # Home Assistant's topics first: it would take an empty topic of ours for a state.
        for topic in sorted(gone - theirs, key=lambda topic: (topic.startswith(own), topic)):
            self._mirror.want(Retained(topic, b""))

    def _is_of_another(self, owner: Owner) -> bool:
        return owner.device_id not in self._devices.meters and self._others.publish(owner)

    def _read_devices(self) -> None:
        self._is_stale = False  # what changes from here on is seen at the next look
        for device_id in self._devices.read():
            for part in self.parts:
                part.forget(device_id)

    def _said(self, now: float) -> dict[str, Said]:
        """What the topics are to hold, by topic."""
        wall = self._wall()
        removed = self._devices.removed_meter_ids(self._known.owners.values())
        said: dict[str, Said] = {}
        if not self._options.is_for_one_device():
            own = self._options.availability()
            said[own] = Said(Retained(own, ONLINE), Owner())
        for device in self._devices.all:
            meters = self._devices.meters[device.id]
            look = Look(device, meters, removed.get(device.id, []), now, wall)
            for part in self.parts:
                for one in part.messages(look):
                    said[one.message.topic] = one
        return said

    def _forget_cleared(self) -> None:
        if self._cleared:
            self._known.remove(self._cleared)
            self._cleared.clear()

    def describe(self) -> list[str]:
        """What would be published now, in lines for a person: by device, then the events."""
        self._hear_no_more()
        self._read_devices()
        said = self._said(self._clock())
        while self._work():
            said = self._said(self._clock())
        titles = {"": "This bridge"}
        titles |= {device.id: f"{device.name} ({device.id})" for device in self._devices.all}
        lines: list[str] = []
        for device_id, title in titles.items():
            messages = [one.message for one in said.values() if one.owner.device_id == device_id]
            if messages:
                lines.append(printable(title))
                lines += [_shown(message.topic, message.payload) for message in messages]
        events = self._events.waiting()
        if events:
            lines.append("Events")
            lines += [_shown(topic, payload) for topic, payload in events]
        clear_count = len(self._known.owners.keys() - said.keys())
        lines.append(
            f"{len(said)} messages to be retained, {len(events)} events, "
            f"{clear_count} topics to clear; nothing was sent"
        )
        return lines

    # --- The end

    def say_offline(self) -> None:
        """Want the broker to hold `offline` for everything, and the latest states."""
        topics = {self._topics.availability(device.id) for device in self._devices.all}
        if not self._options.is_for_one_device():  # else it is the device's, which may be gone
            topics.add(self._options.availability())
        self._last_words = [Retained(topic, OFFLINE) for topic in sorted(topics)]
        self._mirror.hurry(self._last_words)

    def end(self) -> None:
        """Save what the next start needs."""
        for save in (self._forget_cleared, *(part.end for part in self.parts)):
            try:
                save()
            except PowerManagerError as error:
                _log.error("%s", error)

    def send(self) -> None:
        """Send what waits, without a look at the file."""
        self._mirror.send(self._clock())

    def is_done(self) -> bool:
        """Whether the broker holds everything that it is to hold."""
        return self._mirror.is_done()

    def waiting_count(self) -> int:
        """How many topics the broker may hold an older value of."""
        return self._mirror.waiting_count()

    def is_offline(self) -> bool:
        """Whether the broker holds at least every `offline`."""
        return self._mirror.holds(self._last_words)


def _shown(topic: str, payload: bytes) -> str:
    return f"  {printable(f'{topic} {payload.decode()}')}"


def make_parts(pm: PowerManager, options: Options) -> list[Part]:
    """What is published of each device, in the order of sending."""
    topics, rules = options.topics(), options.rules

    def device_ids() -> list[str]:
        return [device.id for device in pm.list_devices() if options.wants(device.id)]

    availability = Availability(topics, rules)
    parts: list[Part] = [
        availability,
        States(topics, rules),
        Totals(topics, rules, pm.power_budget_check, availability.is_online),
        Energies(pm, topics, rules, device_ids),
    ]
    if options.discovery is not None:
        site = Site(topics, options.availability(), rules.expire)
        parts.append(Discovery(site, options.discovery, device_ids))
    return parts
