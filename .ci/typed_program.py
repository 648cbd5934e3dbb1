"""A user's program: `mypy --strict` passes it only if it finds the installed wheel's types."""

from power_collector import main

from power_manager import MeterType, PowerManager, PowerReading, PowerStatistics

with PowerManager("power_manager.db", alert_types=[MeterType.BATTERY, "ups"]) as pm:
    pm.register_device("edge-001", "Edge Node", target_wh=150.0)
    meter = pm.add_meter("edge-001", "battery", capacity_wh=50.0)
    reading: PowerReading = pm.log_power(meter.id, voltage=3.7, current=0.5, charge_pct=None)
    charge: float | None = reading.charge_pct
    hours: list[PowerStatistics] = pm.get_statistics(meter.id)
    # Where all is Any, mypy complains of the two ignores, which nothing needs then.
    name: int = pm.get_device("edge-001").name  # type: ignore[assignment]
    print(reading, charge, hours, name, pm.db_path.name)
    pm.add_meter("edge-001", capacity="much")  # type: ignore[call-arg]

code: int = main(["sources"])
