"""The routes: each checks the grant, makes one call of the library, and sends its records."""

from __future__ import annotations

from power_service.routes import about, devices, fleet, readings, reports

# In the order of the contract.
ROUTERS = (
    devices.router,
    readings.router,
    reports.router,
    about.router,
    fleet.router,
    about.plain,
)
