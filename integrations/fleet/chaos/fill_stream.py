"""Put small messages into a stream, in the format of the power_fleet on Python's path.

    python3 integrations/fleet/chaos/fill_stream.py nats://127.0.0.1:4222 10000 2

In each round each device sends one message of two readings and one of two meters.
"""

from __future__ import annotations

import asyncio
import sys

from power_fleet.codec import Batch, Meter, Reading, encode
from power_fleet.stream import Nats
from power_fleet.subjects import SUBJECT

MAX_GAP = 5_400_000_000
NOW = 1_790_000_000_000_000  # microseconds


async def fill(url: str, devices: int, rounds: int) -> None:
    """Put messages into the stream.

    In each round one of two readings and one of two meters of each device.
    """
    connection = await Nats(url).connect("bench")
    js = connection.jetstream()
    pending = []
    for number in range(rounds):
        at = NOW + number * 5_000_000
        for device in range(devices):
            id_ = f"edge-{device:05}"
            readings = Batch(id_, MAX_GAP, 7)
            states = Batch(id_, MAX_GAP, 7)
            for position, kind in enumerate(("battery", "solar")):
                meter_id = f"{id_}-{kind}"
                readings.readings.append(
                    Reading(meter_id, at + device, 12.5 + number / 1000, 0.801, 80.1)
                )
                states.meters.append(
                    Meter(
                        meter_id,
                        position,
                        kind,
                        kind,
                        50.0,
                        12.5 + number / 1000,
                        0.801,
                        80.1,
                        at + device,
                        True,
                        True,
                        "none",
                        number + 1,
                    )
                )
            for batch in (readings, states):
                message_id, data = encode(batch)
                pending.append(
                    js.publish(SUBJECT + id_, data, 60, headers={"Nats-Msg-Id": message_id})
                )
            if len(pending) >= 1000 or device == devices - 1:
                await asyncio.gather(*pending)
                pending.clear()
    await connection.close()


if __name__ == "__main__":
    asyncio.run(fill(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
