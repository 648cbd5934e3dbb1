"""What has to be at Stripe before usage can be sent there."""

from __future__ import annotations

import stripe

from power_billing.sinks import EVENT_NAME
from power_billing.stripe_client import METER_SETTING, cannot, check_meter
from power_billing.tables import Place, set_setting, tables


def setup(place: Place, client: stripe.StripeClient) -> str:
    """Find the meter of power_watt_hours, or make it; remember its id in the ledger, and return it.

    Raises BillingError for a meter of that name which counts otherwise: it cannot be changed, nor deleted.
    """
    try:
        meter = next(
            (
                m
                for m in client.v1.billing.meters.list().auto_paging_iter()
                if m.event_name == EVENT_NAME
            ),
            None,
        )
        if meter is None:
            meter = client.v1.billing.meters.create(
                {
                    "display_name": "Energy used (Wh)",
                    "event_name": EVENT_NAME,
                    "default_aggregation": {"formula": "sum"},
                    "event_time_window": "hour",
                }
            )
    except stripe.StripeError as error:
        raise cannot(error) from None
    check_meter(meter)
    with tables(place) as conn:
        set_setting(conn, METER_SETTING, meter.id)
    return meter.id
