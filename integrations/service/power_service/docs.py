"""The contract as a page to read, made once from the OpenAPI document, without any script."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

_CODE = re.compile(r"`([^`]+)`")
_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "minLength": "length at least",
    "maxLength": "length at most",
    "maxItems": "number of items at most",
    "format": "format",
    "default": "default",
}


def html(document: dict[str, Any]) -> str:
    """The body of the page."""
    operations = list(_operations(document))
    tags = list(dict.fromkeys(operation["tags"][0] for _, _, operation in operations))
    info = document["info"]
    parts = [
        f"<h1>{escape(info['title'])}</h1>",
        f'<p class="soft">{escape(info["summary"])}. Version {escape(info["version"])}.</p>',
        _prose(info["description"]),
        '<p>The same for programs: <a href="/openapi.json">openapi.json</a>.</p>',
        _contents(tags, operations),
    ]
    for tag in tags:
        parts.append(f'<h2 id="tag-{escape(tag)}">{escape(tag.capitalize())}</h2>')
        for method, path, operation in operations:
            if operation["tags"][0] == tag:
                parts += _operation(document, method, path, operation)
    parts += _stream(document)
    parts.append('<h2 id="schemas">Records</h2>')
    for name, schema in document["components"]["schemas"].items():
        parts += _schema(name, schema)
    return "<main>\n" + "\n".join(parts) + "\n</main>"


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _prose(text: str) -> str:
    """Paragraphs, with text between backticks as code."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n".join(f"<p>{_inline(paragraph)}</p>" for paragraph in paragraphs)


def _inline(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text, quote=False))


def _example(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)
    return f"<pre>{escape(text, quote=False)}</pre>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; the cells of its rows are HTML."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>"


def _contents(tags: list[str], operations: list[tuple[str, str, dict[str, Any]]]) -> str:
    rows = []
    for tag in tags:
        links = [
            f'<a href="#{operation["operationId"]}"><span class="method">{method}</span> '
            f"{escape(path)}</a>"
            for method, path, operation in operations
            if operation["tags"][0] == tag
        ]
        rows.append((f'<a href="#tag-{escape(tag)}">{escape(tag)}</a>', "<br>".join(links)))
    stream = '<a href="#streamMessage"><span class="method">WS</span> /v1/stream</a>'
    rows.append(("messages", stream))
    rows.append(("records", '<a href="#schemas">of requests and answers</a>'))
    return f"<nav>{_table(('', 'route'), rows)}</nav>"


def _operation(
    document: dict[str, Any], method: str, path: str, operation: dict[str, Any]
) -> Iterator[str]:
    yield (
        f'<h3 id="{operation["operationId"]}"><span class="method">{method}</span> '
        f"<code>{escape(path)}</code></h3>"
    )
    yield _prose(operation.get("description") or operation["summary"])
    yield f'<p class="soft">{_who(operation)}</p>'
    if operation.get("parameters"):
        rows = (
            (
                f"<code>{escape(parameter['name'])}</code>",
                escape(parameter["in"]),
                _type(parameter["schema"]) + _limits(parameter["schema"]),
                _inline(parameter.get("description", "")),
            )
            for parameter in operation["parameters"]
        )
        yield _table(("parameter", "in", "type", ""), rows)
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Takes {_type(content['schema'])} as <code>{escape(media_type)}</code>:</p>"
        yield from (_example(example["value"]) for example in content["examples"].values())
    yield from _answers(document, operation)


def _who(operation: dict[str, Any]) -> str:
    if "security" not in operation:
        return "No token needed."
    scopes = [scope for entry in operation["security"] for scope in next(iter(entry.values()))]
    return f"Scope: {', '.join(scopes)}." if scopes else "Any valid token."


def _answers(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    errors = []
    for status, response in operation["responses"].items():
        if "$ref" in response:
            name = response["$ref"].rpartition("/")[2]
            errors.append((status, document["components"]["responses"][name]["description"]))
            continue
        if "content" not in response:
            yield f"<p>Answers {status}, without a body.</p>"
        for media_type, content in response.get("content", {}).items():
            kind = _type(content["schema"])
            yield f"<p>Answers {status}, {kind} as <code>{escape(media_type)}</code>:</p>"
            yield f"<details><summary>Example</summary>{_example(content['example'])}</details>"
    rows = ((status, _inline(description)) for status, description in errors)
    yield f"<details><summary>Errors</summary>{_table(('status', ''), rows)}</details>"


def _stream(document: dict[str, Any]) -> Iterator[str]:
    operation = document["webhooks"]["stream"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    yield '<h2 id="streamMessage">Messages of the stream</h2>'
    yield _prose(operation["description"])
    for name, example in content["examples"].items():
        yield f"<h3><code>{escape(name)}</code></h3>"
        yield _example(example["value"])


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f'<h3 id="schema-{escape(name)}">{escape(name)}</h3>'
    if "description" in schema:
        yield _prose(schema["description"])
    if "properties" not in schema:
        yield f"<p>{_type(schema)}</p>"
        return
    required = schema.get("required", [])
    rows = (
        (
            f"<code>{escape(key)}</code>",
            _type(part) + _limits(part),
            "always" if key in required else "may be left out",
            _inline(part.get("description", "")),
        )
        for key, part in schema["properties"].items()
    )
    yield _table(("key", "type", "", ""), rows)


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with links to records."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(_type(part) for part in schema[union])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return escape(" or ".join(kind))
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object with values {_type(schema['additionalProperties'])}"
    return escape(kind)


def _limits(schema: dict[str, Any]) -> str:
    """Its bounds and its default, in soft letters."""
    found = [
        f"{words} {escape(json.dumps(schema[key], ensure_ascii=False).strip(chr(34)))}"
        for key, words in _LIMITS.items()
        if key in schema
    ]
    return f'<br><span class="soft">{"; ".join(found)}</span>' if found else ""
