"""The loopback Stripe's customers, products, prices and subscriptions, as strict as documented.

Written from Stripe's API reference (docs.stripe.com/api: customers, products, prices,
subscriptions, subscription_items), the limits of parameters from its OpenAPI description of
2026-09-30.endive, and the changelog of 2025-03-31.basil: a metered price needs a meter. What it
leaves out it refuses as unknown, so a test that passes has sent nothing which Stripe was not asked
about.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from loopback_schema import Answer, Refusal, Schema, check

PAGE: Schema = {
    "limit": (False, r"[1-9]\d?|100"),
    "starting_after": (False, r".+"),
    "ending_before": (False, r".+"),
}
CUSTOMER: Schema = {
    "name": (False, r".{1,256}"),
    "email": (False, r".{1,512}"),
    "metadata[]": (False, r".{0,500}"),
}
PRODUCT: Schema = {
    "name": (True, r".{1,5000}"),
    "unit_label": (False, r".{1,12}"),
    "metadata[]": (False, r".{0,500}"),
}
PRODUCTS: Schema = {**PAGE, "active": (False, r"true|false")}
PRICE: Schema = {
    "currency": (True, r"[a-z]{3}"),
    "product": (True, r"prod_\w+"),
    "unit_amount_decimal": (True, r"\d{1,12}(\.\d{1,12})?"),
    "recurring[interval]": (True, r"day|week|month|year"),
    "recurring[usage_type]": (False, r"metered|licensed"),
    "recurring[meter]": (False, r"mtr_\w+"),
    "nickname": (False, r".{1,5000}"),
    "metadata[]": (False, r".{0,500}"),
}
PRICES: Schema = {
    **PAGE,
    "active": (False, r"true|false"),
    "product": (False, r"prod_\w+"),
    "currency": (False, r"[a-z]{3}"),
    "recurring[meter]": (False, r"mtr_\w+"),
    "recurring[usage_type]": (False, r"metered|licensed"),
}
SUBSCRIPTION: Schema = {
    "customer": (True, r"cus_\w+"),
    "items[][price]": (True, r"price_\w+"),
    "items[][quantity]": (False, r"\d+"),
    "billing_cycle_anchor": (False, r"\d{1,12}"),
    "backdate_start_date": (False, r"\d{1,12}"),
    "collection_method": (False, r"charge_automatically|send_invoice"),
    "days_until_due": (False, r"\d{1,4}"),
    "metadata[]": (False, r".{0,500}"),
}
SUBSCRIPTIONS: Schema = {
    **PAGE,
    "customer": (False, r"cus_\w+"),
    "price": (False, r"price_\w+"),
    "status": (
        False,
        r"active|past_due|unpaid|canceled|incomplete|incomplete_expired|trialing|paused|all|ended",
    ),
}
ITEM: Schema = {"subscription": (True, r"sub_\w+"), "price": (True, r"price_\w+")}
ITEMS: Schema = {**PAGE, "subscription": (True, r"sub_\w+")}
NOTHING: Schema = {}
MOST_KEYS, LONGEST_KEY = 50, 40  # of an object's metadata: api/metadata
MOST_ITEMS = 20  # of a subscription: api/subscriptions/create


class Catalog:
    """What is sold to whom. `clock` is Stripe's; `meters` are the server's, by id.

    has_everyone: every customer exists that somebody asks for, and is subscribed to every meter
    there is then.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        meters: dict[str, dict[str, Any]],
        livemode: bool,
        has_everyone: bool,
    ) -> None:
        self._clock, self._meters, self._livemode = clock, meters, livemode
        self._has_everyone = has_everyone
        self.objects: dict[str, dict[str, dict[str, Any]]] = {
            "customer": {},
            "product": {},
            "price": {},
            "subscription": {},
        }

    def answer(self, method: str, path: str, values: dict[str, str]) -> Answer | None:
        """The answer to a request of this part of the API; None where it is none."""
        found = re.fullmatch(
            r"/v1/(customer|product|price|subscription|subscription_item)s(?:/(\w+))?", path
        )
        if found is None:
            return None
        kind, id_ = found.groups()
        if kind == "subscription_item":
            return self._items(method, path, id_, values)
        if method == "POST" and id_ is None:
            return 200, getattr(self, f"_make_{kind}")(values), {}
        if method == "GET" and id_ is None and kind != "customer":
            return 200, self._list(kind, path, values), {}
        if method == "GET" and id_ is not None:
            if kind == "customer" and self._has_everyone:
                self._subscribe(id_)
            check(NOTHING, values)
            return 200, self.get(kind, id_), {}
        if method == "POST" and id_ is not None and kind == "customer":
            return 200, self._change_customer(id_, values), {}
        if method == "DELETE" and id_ is not None and kind in ("customer", "subscription"):
            return 200, self._delete(kind, id_), {}
        return None

    def get(self, kind: str, id_: str, param: str = "id") -> dict[str, Any]:
        """An object, or what Stripe says where there is none."""
        if id_ not in self.objects[kind]:
            raise Refusal(404, f"No such {kind}: '{id_}'", param, "resource_missing")
        return self.objects[kind][id_]

    def add_customer(self, id_: str, **fields: Any) -> None:
        """A customer whose id a test has chosen."""
        head = {"id": id_, "object": "customer", "created": int(self._clock()), "metadata": {}}
        self.objects["customer"][id_] = {**head, "livemode": self._livemode, **fields}

    def _subscribe(self, customer: str) -> None:
        """Let a customer be there and be subscribed, whoever it is."""
        if customer not in self.objects["customer"]:
            self.add_customer(customer)
        if not self._meters or any(
            one["customer"] == customer for one in self.objects["subscription"].values()
        ):
            return
        product = self._make_product({"name": "Energy of everyone"})
        head = {"currency": "usd", "product": product["id"], "unit_amount_decimal": "0.03"}
        items = {}
        for position, meter in enumerate(self._meters):
            metered = {"recurring[usage_type]": "metered", "recurring[meter]": meter}
            price = self._make_price({**head, "recurring[interval]": "month", **metered})
            items[f"items[{position}][price]"] = price["id"]
        self._make_subscription({"customer": customer, **items})

    def _new(self, kind: str, prefix: str, values: dict[str, Any]) -> dict[str, Any]:
        made = {
            "id": f"{prefix}_loop{len(self.objects[kind]) + 1}",
            "object": kind,
            "created": int(self._clock()),
            "livemode": self._livemode,
            **values,
        }
        self.objects[kind][made["id"]] = made
        return made

    def _make_customer(self, values: dict[str, str]) -> dict[str, Any]:
        check(CUSTOMER, values)
        return self._new(
            "customer", "cus", {"name": values.get("name"), "metadata": _metadata(values)}
        )

    def _change_customer(self, id_: str, values: dict[str, str]) -> dict[str, Any]:
        """Change the metadata: keys that are not named stay, one with an empty value is removed."""
        if self._has_everyone:
            self._subscribe(id_)
        customer = self.get("customer", id_)
        check(CUSTOMER, values)
        if customer.get("deleted"):
            raise Refusal(404, f"No such customer: '{id_}'", "id", "resource_missing")
        merged = {**customer["metadata"], **_metadata(values)}
        kept = {key: text for key, text in merged.items() if text}
        if len(kept) > MOST_KEYS or max(map(len, kept), default=0) > LONGEST_KEY:
            raise Refusal(400, f"Metadata: up to {MOST_KEYS} keys of {LONGEST_KEY}", "metadata")
        customer["metadata"] = kept
        return customer

    def _make_product(self, values: dict[str, str]) -> dict[str, Any]:
        check(PRODUCT, values)
        fields = {
            "name": values["name"],
            "unit_label": values.get("unit_label"),
            "active": True,
            "metadata": _metadata(values),
        }
        return self._new("product", "prod", fields)

    def _make_price(self, values: dict[str, str]) -> dict[str, Any]:
        check(PRICE, values)
        self.get("product", values["product"], "product")
        usage_type, meter = (
            values.get("recurring[usage_type]", "licensed"),
            values.get("recurring[meter]"),
        )
        if (usage_type == "metered") != (meter is not None):
            raise Refusal(400, "A metered price needs a meter, and only that.", "recurring[meter]")
        if meter is not None and self._meters.get(meter, {}).get("status") != "active":
            raise Refusal(
                404, f"No such billing meter: '{meter}'", "recurring[meter]", "resource_missing"
            )
        amount = values["unit_amount_decimal"]
        fields = {
            "active": True,
            "billing_scheme": "per_unit",
            "currency": values["currency"],
            "product": values["product"],
            "metadata": _metadata(values),
            "nickname": values.get("nickname"),
            "type": "recurring",
            "recurring": {
                "interval": values["recurring[interval]"],
                "interval_count": 1,
                "meter": meter,
                "trial_period_days": None,
                "usage_type": usage_type,
            },
            "transform_quantity": None,
            "unit_amount": int(amount) if "." not in amount else None,
            "unit_amount_decimal": amount,
        }
        return self._new("price", "price", fields)

    def _make_subscription(self, values: dict[str, str]) -> dict[str, Any]:
        check(SUBSCRIPTION, values)
        customer = self.get("customer", values["customer"], "customer")
        if customer.get("deleted"):
            raise Refusal(
                404, f"No such customer: '{customer['id']}'", "customer", "resource_missing"
            )
        method = values.get("collection_method", "charge_automatically")
        if (method == "send_invoice") != ("days_until_due" in values):
            raise Refusal(
                400, "days_until_due goes with collection_method=send_invoice", "days_until_due"
            )
        begins = int(values.get("backdate_start_date", self._clock()))
        if begins > self._clock():
            raise Refusal(400, "backdate_start_date must be in the past.", "backdate_start_date")
        anchor = int(values.get("billing_cycle_anchor", self._clock() + 1))
        if not self._clock() < anchor <= self._clock() + 31 * 86_400:
            raise Refusal(
                400, "billing_cycle_anchor must be in the coming period.", "billing_cycle_anchor"
            )
        fields = {
            "billing_cycle_anchor": anchor,
            "customer": customer["id"],
            "status": "active",
            "collection_method": method,
            "start_date": begins,
            "cancel_at_period_end": False,
            "metadata": _metadata(values),
            "items": {
                "object": "list",
                "data": [],
                "has_more": False,
                "url": "/v1/subscription_items",
            },
        }
        prices = [
            text for name, text in values.items() if re.fullmatch(r"items\[\d+\]\[price\]", name)
        ]
        for price in prices:  # before anything is made
            self.get("price", price, "items[0][price]")
        if any(name.endswith("[quantity]") for name in values):
            raise Refusal(
                400,
                "Quantity should not be specified where usage_type is `metered`.",
                "items[0][quantity]",
            )
        made = self._new("subscription", "sub", fields)
        for price in prices:
            self._add_item(made, price)
        return made

    def _items(
        self, method: str, path: str, id_: str | None, values: dict[str, str]
    ) -> Answer | None:
        if method == "POST" and id_ is None:
            check(ITEM, values)
            subscription = self.get("subscription", values["subscription"], "subscription")
            if subscription["status"] == "canceled":
                raise Refusal(
                    404,
                    f"No such subscription: '{subscription['id']}'",
                    "subscription",
                    "resource_missing",
                )
            return 200, self._add_item(subscription, values["price"]), {}
        if method == "GET" and id_ is None:
            check(ITEMS, values)
            of_subscription = self.get("subscription", values["subscription"], "subscription")
            return 200, page(path, of_subscription["items"]["data"], values), {}
        if method == "GET" and id_ is not None:
            every = [
                one for sub in self.objects["subscription"].values() for one in sub["items"]["data"]
            ]
            for item in every:
                if item["id"] == id_:
                    return 200, item, {}
            raise Refusal(404, f"No such subscription_item: '{id_}'", "id", "resource_missing")
        return None

    def _add_item(self, subscription: dict[str, Any], price_id: str) -> dict[str, Any]:
        price = self.get("price", price_id, "price")
        items = subscription["items"]["data"]
        if len(items) == MOST_ITEMS:
            raise Refusal(400, f"A subscription may have up to {MOST_ITEMS} items.", "items")
        if any(item["price"]["id"] == price_id for item in items):
            raise Refusal(
                400, "Cannot add multiple subscription items with the same plan.", "price"
            )
        item = {
            "id": f"si_{subscription['id'].partition('_')[2]}n{len(items) + 1}",
            "object": "subscription_item",
            "created": int(self._clock()),
            "metadata": {},
            "price": price,
            "subscription": subscription["id"],
            "current_period_start": subscription["start_date"],
            "current_period_end": subscription["start_date"] + 30 * 86_400,
        }
        items.append(item)
        return item

    def _list(self, kind: str, path: str, values: dict[str, str]) -> dict[str, Any]:
        """A page, the newest first, as Stripe lists."""
        schema = {"product": PRODUCTS, "price": PRICES, "subscription": SUBSCRIPTIONS}[kind]
        check(schema, values)
        matching = [one for one in self.objects[kind].values() if _matches(kind, one, values)]
        return page(path, matching[::-1], values)

    def _delete(self, kind: str, id_: str) -> dict[str, Any]:
        found = self.get(kind, id_)
        if kind == "subscription":
            found["status"] = "canceled"
            return found
        self.objects[kind][id_] = {"id": id_, "object": kind, "deleted": True}
        for subscription in self.objects["subscription"].values():
            if subscription["customer"] == id_:
                subscription["status"] = "canceled"
        return self.objects[kind][id_]


def _matches(kind: str, one: dict[str, Any], values: dict[str, str]) -> bool:
    """Whether an object is in the list that was asked for."""
    if "active" in values and one["active"] != (values["active"] == "true"):
        return False
    if kind == "price":
        wanted = {
            "product": one["product"],
            "currency": one["currency"],
            "recurring[meter]": one["recurring"]["meter"],
            "recurring[usage_type]": one["recurring"]["usage_type"],
        }
        return all(values.get(name, text) == text for name, text in wanted.items())
    if kind == "subscription":
        status = values.get("status")
        in_status = (
            one["status"] != "canceled" if status is None else status in ("all", one["status"])
        )
        prices = [item["price"]["id"] for item in one["items"]["data"]]
        return (
            in_status
            and values.get("customer", one["customer"]) == one["customer"]
            and ("price" not in values or values["price"] in prices)
        )
    return True


def page(path: str, objects: list[dict[str, Any]], values: dict[str, str]) -> dict[str, Any]:
    """A page of a list."""
    ids = [one["id"] for one in objects]
    begin = ids.index(values["starting_after"]) + 1 if "starting_after" in values else 0
    end = begin + int(values.get("limit", "10"))
    return {"object": "list", "url": path, "has_more": end < len(ids), "data": objects[begin:end]}


def _metadata(values: dict[str, str]) -> dict[str, str]:
    found = {re.fullmatch(r"metadata\[(.+)\]", name): text for name, text in values.items()}
    return {match[1]: text for match, text in found.items() if match is not None}
