"""The ledger as metrics for Prometheus: a file for the node exporter, or a part of a page."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from power_billing.errors import BillingError
from power_billing.findings import FindingKind
from power_billing.outbox import State
from power_billing.tables import Place
from power_billing.usage import Status, status
from power_manager import PowerManager

Sample = tuple[str, str, float]  # label, its value, and the number; "" for no label
_OPEN = (State.QUEUED, State.REFUSED, State.CONFLICT)


def metrics_text(now: Status) -> str:
    """The metrics in Prometheus' text format; 0 is the time of a run that never was."""
    states: list[Sample] = [("state", state.value, now.count(state)) for state in _OPEN]
    kinds: list[Sample] = []
    for kind in FindingKind:
        undecided = [one for one in now.findings if one.kind is kind and not one.is_accepted]
        kinds.append(("kind", kind.value, len(undecided)))
    customers: list[Sample] = [("customer", one.customer, one.billed_wh) for one in now.customers]
    lines = [
        *_metric("last_run_timestamp_seconds", "When the last run ended.", now.last_run),
        *_metric(
            "last_good_run_timestamp_seconds",
            "When the last run ended that left nothing to send or to decide.",
            now.last_good_run,
        ),
        *_metrics("open_events", "Events to be sent, or to be decided.", states),
        *_metrics("findings", "What is not billed, or stays billed, not accepted yet.", kinds),
        *_metric("too_old_events", "Events that were not sent in time.", len(now.too_old)),
        *_metric("lost_watt_hours", "Energy that came to light too late.", now.lost_wh),
        *_metrics("billed_watt_hours", "Energy taken into account so far.", customers),
    ]
    return "\n".join(lines) + "\n"


def scraped(pm: PowerManager, ledger: Place | None = None) -> bytes:
    """The metrics of a ledger as they are now; ledger: the library's file by default."""
    return metrics_text(status(pm, ledger)).encode()


def _metric(name: str, text: str, value: float | None) -> list[str]:
    return _metrics(name, text, [("", "", value or 0.0)])


def _metrics(name: str, text: str, samples: Iterable[Sample]) -> list[str]:
    lines = [f"# HELP power_billing_{name} {text}", f"# TYPE power_billing_{name} gauge"]
    for label, value, number in samples:
        labels = f'{{{label}="{value}"}}' if label else ""
        lines.append(f"power_billing_{name}{labels} {number!r}")
    return lines


def write_metrics(path: Path, now: Status) -> None:
    """Write them to a file that others may read, whole or not at all. Raises BillingError."""
    temporary = None
    try:
        # Beside it, and with another suffix, so that no reader sees half of it.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(metrics_text(now))
            os.fchmod(descriptor, 0o644)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise BillingError(f"{path}: metrics cannot be written: {error.strerror}") from None
