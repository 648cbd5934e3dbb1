"""A statement as text for a terminal, JSON and CSV for programs, and HTML that prints on A4."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from power_billing.hours import iso
from power_billing.statement import CustomerStatement, DeviceLines, Line, Statement
from power_billing.tariff import Period
from power_manager import Column, Screen, make_table

# How many devices have a column of their own on a page of A4.
_MOST_COLUMNS = 5
_MOST_BESIDE_BAR = 3
_MOST_LISTED = 5
_AFTER_INVOICE = "after the invoice"
_NOT_BILLED = "not billed"
_NOTHING = "Nothing is billed yet. A statement has what was sent: `power-billing report` sends it."
_OTHER = "rounding, and what is not billed"


def shown_wh(watt_hours: Decimal) -> str:
    """Watt-hours for people: whole ones whole, otherwise to three decimals.

    >>> shown_wh(Decimal("12345")), shown_wh(Decimal("0.4567"))
    ('12,345', '0.457')
    """
    if watt_hours == watt_hours.to_integral_value():
        return f"{watt_hours:,.0f}"
    return f"{watt_hours:,.3f}"


def shown_cost(statement: Statement, line: Line) -> str:
    """Money for people, in the price's currency; nothing without a price."""
    price = statement.some_price
    if line.cost is None or price is None:
        return ""
    cost = line.cost + 0  # a negative zero becomes a plain one
    return f"{cost:,.{price.decimals}f} {price.currency.upper()}"


def device_name(device: DeviceLines) -> str:
    """A device's id, and its name where that says more."""
    if device.name is None:
        return f"{device.device_id} (deleted)"
    if device.name == device.device_id:
        return device.device_id
    return f"{device.device_id} ({device.name})"


def _state(statement: Statement) -> str:
    so_far = "" if statement.is_over else ", so far"
    if statement.tariff is not None:
        price = f"prices by time of day in {statement.tariff.zone}"
    else:
        price = "no price" if statement.price is None else str(statement.price)
    return f"{statement.month}{so_far}, {price}"


def _has_other(one: CustomerStatement) -> bool:
    """Whether anything is billed beside the devices; 0 Wh over two periods may cost something."""
    return bool(one.other.watt_hours or one.other.cost)


class _PeriodLine(NamedTuple):
    """A customer's total of a period of the tariff."""

    period: Period
    line: Line


def _period_lines(statement: Statement, one: CustomerStatement) -> list[_PeriodLine]:
    """A customer's total by period, in the tariff's order; none without a tariff."""
    periods = [] if statement.tariff is None else statement.tariff.periods
    return [_PeriodLine(period, one.periods[period.name]) for period in periods]


# --- Text


def as_text(statement: Statement, screen: Screen) -> str:
    """Tables for a terminal."""
    parts = [f"Energy billed, {_state(statement)}"]
    parts += [_customer_text(statement, one, screen) for one in statement.customers]
    if not statement.customers:
        parts.append(_NOTHING)
    total = f"{shown_wh(statement.total.watt_hours)} Wh {shown_cost(statement, statement.total)}"
    parts.append(f"total: {total.rstrip()}")
    return "\n\n".join(parts)


class _TextRow(NamedTuple):
    """A row of a customer's table: a device or a sum, on a day or in the month."""

    name: str
    day: str
    line: Line


def _customer_text(statement: Statement, one: CustomerStatement, screen: Screen) -> str:
    rows: list[_TextRow] = []
    for device in one.devices:
        name = device_name(device)
        rows += [_TextRow(name, day, line) for day, line in device.days.items()]
        rows.append(_TextRow(name, "month", device.total))
    if _has_other(one):
        rows.append(_TextRow(_OTHER, "month", one.other))
    rows.append(_TextRow("total", "month", one.total))
    columns = [
        Column(one.customer, lambda row: row.name),
        Column("day", lambda row: row.day),
        Column("Wh", lambda row: shown_wh(row.line.watt_hours), right=True),
    ]
    if statement.some_price is not None:
        columns.append(Column("cost", lambda row: shown_cost(statement, row.line), right=True))
    lines = [make_table(columns, rows, screen)]
    periods = _period_lines(statement, one)
    if periods:
        lines += ["", make_table(_period_columns(statement), periods, screen)]
    lines += [f"{_AFTER_INVOICE}: {text}" for text in _late_texts(one)]
    lines += [f"{_NOT_BILLED}: {text}" for text in _unbilled_texts(one)]
    return "\n".join(lines)


def _period_columns(statement: Statement) -> list[Column]:
    return [
        Column("period", lambda row: row.period.name),
        Column("price", lambda row: str(row.period.price)),
        Column("Wh", lambda row: shown_wh(row.line.watt_hours), right=True),
        Column("cost", lambda row: shown_cost(statement, row.line), right=True),
    ]


def _late_texts(one: CustomerStatement) -> Iterator[str]:
    for late in one.late:
        difference = late.after_wh - late.before_wh
        yield f"{iso(late.hour)} {late.before_wh} Wh became {late.after_wh} Wh ({difference:+} Wh)"


def _unbilled_texts(one: CustomerStatement) -> Iterator[str]:
    for lost in one.unbilled:
        if lost.watt_hours is None:
            yield f"{iso(lost.hour)} {lost.reason}"
            continue
        sign = "+" if lost.watt_hours > 0 else ""
        yield f"{iso(lost.hour)} {sign}{shown_wh(lost.watt_hours)} Wh {lost.reason}"


# --- JSON


def as_json(statement: Statement) -> str:
    """One object; energies are numbers, money is decimal text: exact, as in the CSV."""
    price = statement.price
    some_price = statement.some_price
    tariff = statement.tariff
    found = {
        "month": statement.month,
        "is_over": statement.is_over,
        "currency": None if some_price is None else some_price.currency,
        "price": None if price is None else f"{price.amount:f}",
        "price_unit": None if some_price is None else some_price.unit,
        "tariff_zone": None if tariff is None else tariff.zone,
        "customers": [_customer_json(statement, one) for one in statement.customers],
        **_line_json(statement.total),
    }
    return json.dumps(found, indent=2)


def _customer_json(statement: Statement, one: CustomerStatement) -> dict[str, Any]:
    return {
        "customer": one.customer,
        **_line_json(one.total),
        "devices": [
            {
                "device_id": device.device_id,
                "name": device.name,
                "is_deleted": device.name is None,
                **_line_json(device.total),
                "days": _days_json(device.days),
            }
            for device in one.devices
        ],
        "other": _line_json(one.other),
        "days": _days_json(one.days),
        "periods": [
            {"period": period.name, "price": f"{period.price.amount:f}", **_line_json(line)}
            for period, line in _period_lines(statement, one)
        ],
        "after_invoice": [
            {"hour": iso(late.hour), "before_wh": late.before_wh, "after_wh": late.after_wh}
            for late in one.late
        ],
        "not_billed": [
            {
                "hour": iso(lost.hour),
                "energy_wh": None if lost.watt_hours is None else float(lost.watt_hours),
                "reason": lost.reason,
            }
            for lost in one.unbilled
        ],
    }


def _line_json(line: Line) -> dict[str, Any]:
    return {
        "energy_wh": float(line.watt_hours),
        "cost": None if line.cost is None else f"{line.cost:f}",
    }


def _days_json(days: dict[str, Line]) -> list[dict[str, Any]]:
    return [{"day": day, **_line_json(line)} for day, line in days.items()]


# --- CSV

CSV_COLUMNS = (
    "kind",
    "customer",
    "device_id",
    "day",
    "hour",
    "energy_wh",
    "cost",
    "currency",
    "reason",
    "period",
    "price",
    "price_unit",
)


def as_csv(statement: Statement) -> str:
    """Rows of kind `usage`, one a device and day, and `other` add up to what was billed.

    Rows of kind `period` are the same by period of the tariff, if there is one; rows of kind
    `after_invoice` and `not_billed` are not part of that sum.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    price = statement.some_price
    currency = "" if price is None else price.currency
    for one in statement.customers:
        for device in one.devices:
            for day, line in device.days.items():
                row = {"kind": "usage", "customer": one.customer, "device_id": device.device_id}
                writer.writerow({**row, "day": day, **_line_csv(line, currency)})
        row = {"kind": "other", "customer": one.customer}
        writer.writerow({**row, **_line_csv(one.other, currency)})
        for period, line in _period_lines(statement, one):
            row = {"kind": "period", "customer": one.customer, "period": period.name}
            row |= {"price": f"{period.price.amount:f}", "price_unit": period.price.unit}
            writer.writerow({**row, **_line_csv(line, currency)})
        for late in one.late:
            row = {"kind": "after_invoice", "customer": one.customer, "hour": iso(late.hour)}
            writer.writerow({**row, "energy_wh": str(late.after_wh - late.before_wh)})
        for lost in one.unbilled:
            row = {"kind": "not_billed", "customer": one.customer, "hour": iso(lost.hour)}
            wh = "" if lost.watt_hours is None else str(lost.watt_hours)
            writer.writerow({**row, "energy_wh": wh, "reason": lost.reason})
    return out.getvalue()


def _line_csv(line: Line, currency: str) -> dict[str, str]:
    return {
        "energy_wh": f"{line.watt_hours:f}",
        "cost": "" if line.cost is None else f"{line.cost:f}",
        "currency": currency,
    }


# --- HTML

_STYLE = """
@page { size: A4; margin: 10mm 15mm; }
* { box-sizing: border-box; }
body { font: 9pt/1.25 system-ui, sans-serif; color: #1c2024; margin: 0 auto; max-width: 180mm; }
section { break-after: page; }
section:last-of-type { break-after: auto; }
header { display: flex; justify-content: space-between; align-items: flex-end;
  border-bottom: 1.5pt solid #1c2024; padding: 4mm 0 2mm; margin-bottom: 4mm; }
h1 { font-size: 15pt; margin: 0; }
h2 { font-size: 10pt; margin: 3mm 0 .5mm; }
table + table { margin-top: 3mm; }
.sum { text-align: right; font-size: 15pt; font-weight: 600; }
.sum small, header small { display: block; font-size: 9pt; font-weight: 400; color: #555c63; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3mm 1.5mm; border-bottom: .4pt solid #dfe3e6;
  white-space: nowrap; }
th { font-weight: 600; border-bottom: .8pt solid #1c2024; }
.days td:last-child:has(.bar) { width: 29mm; padding-left: 4.5mm; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; }
td:last-child, th:last-child { padding-right: 0; }
tfoot td { font-weight: 600; border-bottom: 0; border-top: .8pt solid #1c2024; }
.days td:first-child { white-space: nowrap; }
.days th { max-width: 22mm; overflow: hidden; text-overflow: ellipsis; }
.devices td:first-child { overflow-wrap: anywhere; }
.bar { display: block; height: 2.2mm; background: #2f6f9f; border-radius: .6mm;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
ul { margin: 0; padding-left: 4mm; font-size: 7.5pt; columns: 2; column-gap: 4mm; }
li { break-inside: avoid; }
footer { margin-top: 3mm; color: #555c63; font-size: 8pt; }
""".strip()
_FOOT = "Days and hours are UTC. Billed is what the biller took of an hour, in whole watt-hours."


def as_html(statement: Statement) -> str:
    """A page that needs no other file; each customer begins a new sheet when it is printed."""
    sections = [_section(statement, one) for one in statement.customers]
    if not sections:
        head = _head(statement, "no customer", statement.total)
        sections = [f"<section>{head}<p>{_NOTHING}</p></section>"]
    title = f"Energy billed, {statement.month}"
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{_STYLE}\n</style>\n"
        + "\n".join(sections)
        + "\n</html>\n"
    )


def _text(value: str) -> str:
    return html.escape(value)


def _head(statement: Statement, customer: str, total: Line) -> str:
    wh = f"{shown_wh(total.watt_hours)} Wh"
    cost = shown_cost(statement, total)
    big, small = (cost, wh) if cost else (wh, "")
    state = _text(_state(statement))
    return (
        f"<header><h1>Energy billed<small>{_text(customer)}</small><small>{state}</small></h1>"
        f'<div class="sum">{_text(big)}<small>{_text(small)}</small></div></header>'
    )


def _section(statement: Statement, one: CustomerStatement) -> str:
    parts = [
        _head(statement, one.customer, one.total),
        _devices_html(statement, one),
    ]
    if statement.tariff is not None:
        parts.append(_periods_html(statement, one))
    parts.append(_days_html(statement, one))
    parts += _list_html("Changed after the invoice", list(_late_texts(one)))
    parts += _list_html("Not billed", list(_unbilled_texts(one)))
    return "<section>\n" + "\n".join(parts) + f"\n<footer>{_FOOT}</footer>\n</section>"


def _row(cells: list[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _devices_html(statement: Statement, one: CustomerStatement) -> str:
    rows = [(device_name(device), device.total) for device in one.devices]
    if _has_other(one):
        rows.append((_OTHER, one.other))
    cells = _money_cells(statement)
    head = _row(["Device", *_money_titles(statement)], "th")
    body = [_row([_text(name), *cells(line)]) for name, line in rows]
    return _table("devices", head, body, _row(["Total", *cells(one.total)]))


def _periods_html(statement: Statement, one: CustomerStatement) -> str:
    cells = _money_cells(statement)
    rows = [
        _row([_text(period.name), _text(str(period.price)), *cells(line)])
        for period, line in _period_lines(statement, one)
    ]
    return _table("periods", _row(["Period", "Price", *_money_titles(statement)], "th"), rows)


def _money_cells(statement: Statement) -> Callable[[Line], list[str]]:
    """A function that makes the cells of a line: watt-hours and, if there is a price, money."""

    def cells(line: Line) -> list[str]:
        cost, _, _ = shown_cost(statement, line).partition(
            " "
        )  # the column's head has the currency
        return [shown_wh(line.watt_hours), *([cost] if statement.some_price else [])]

    return cells


def _money_titles(statement: Statement) -> list[str]:
    price = statement.some_price
    return ["Wh", *([price.currency.upper()] if price else [])]


def _days_html(statement: Statement, one: CustomerStatement) -> str:
    """A row a day; a few devices have a column each, and if there is room a bar shows the day."""
    devices = one.devices if 1 < len(one.devices) <= _MOST_COLUMNS else []
    has_bar = len(devices) <= _MOST_BESIDE_BAR
    cells = _money_cells(statement)
    names = [_text(device.device_id) for device in devices]
    titles = ["Day", *names, *_money_titles(statement), *([""] if has_bar else [])]
    most = max((line.watt_hours for line in one.days.values()), default=Decimal(0))
    rows = []
    for day, line in one.days.items():
        of_devices = [_day_cell(device, day) for device in devices]
        row = [day, *of_devices, *cells(line), *([_bar(line.watt_hours, most)] if has_bar else [])]
        rows.append(_row(row))
    return _table("days", _row(titles, "th"), rows)


def _day_cell(device: DeviceLines, day: str) -> str:
    return shown_wh(device.days[day].watt_hours) if day in device.days else ""


def _bar(watt_hours: Decimal, most: Decimal) -> str:
    width_pct = max(round(100 * watt_hours / most), 0) if most > 0 else 0
    return f'<i class="bar" style="width:{width_pct}%"></i>'


def _table(kind: str, head: str, rows: list[str], foot: str = "") -> str:
    body = "\n".join(rows)
    return (
        f'<table class="{kind}">\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n'
        f"<tfoot>{foot}</tfoot>\n</table>"
    )


def _list_html(title: str, texts: list[str]) -> list[str]:
    """A list that leaves room for the rest of the page: it counts what it leaves out."""
    if not texts:
        return []
    if len(texts) > _MOST_LISTED:
        more = len(texts) - _MOST_LISTED
        texts = [*texts[:_MOST_LISTED], f"and {more} hours more: --format csv has all of them"]
    items = "\n".join(f"<li>{_text(text)}</li>" for text in texts)
    return [f"<h2>{_text(title)}</h2>\n<ul>\n{items}\n</ul>"]
