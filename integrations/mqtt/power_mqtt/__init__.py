"""A power_manager file and MQTT: its states and events to a broker, MQTT sensors into the file.

Both directions:

    broker      the broker's address, and the options that say it
    connection  to a broker, by paho-mqtt; notices: what it tells the program

The file to a broker:

    publish     the command; options: what it is asked for
    publisher   looks at the file, and sends what has changed; suspicion: what the broker refuses
    devices     as the file has them; topics, payloads: what is published where, and as what
    place       whether the open file is still the one that its path names
    parts       states, totals, availability; events: the events, by a cursor in the file
    energies    the energy messages; counters: they only go up; energy: from the file; sums: kept
    discovery   Home Assistant's
    mirror      what the broker retains; known: the topics of it that are in the file
    ghosts      what a killed broker shows again; others: devices that another node publishes too

MQTT devices into the file:

    subscribe   the command; mapping: which topic is which meter
    joining     messages become readings; intake: readings go into the file
    sniff       prints what comes, and a map for it

errors: the root of the errors. The command line is cli.
"""

from __future__ import annotations

from power_manager import __version__

__all__ = ["__version__"]
