"""An AsyncAPI document as one self-contained page, readable without JavaScript and without a network."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

from things_kit.contracts.compatibility import resolve

DEEPEST: Final = 6
"""Levels of an example: a recursive type ends there."""

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-top: 1px solid var(--line); padding-top: 1.5rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; border-radius: .4rem; }
.tag { border: 1px solid var(--line); border-radius: 1rem; padding: .05rem .6rem; font-size: .85em; margin-right: .3rem; }
nav a { margin-right: 1rem; }
"""


def page(document: Mapping[str, Any]) -> str:
    """The page of a document."""
    info = document["info"]
    title = escape(str(info["title"]))
    channels = document.get("channels", {})
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><main>",
        f"<h1>{title} <small>{escape(str(info['version']))}</small></h1>",
        _paragraph(info.get("description")),
        _servers(document.get("servers", {})),
        "<nav>" + "".join(f'<a href="#{escape(name)}">{escape(str(each["address"] or name))}</a>' for name, each in channels.items()) + "</nav>",
        *(_channel(document, name, channel) for name, channel in channels.items()),
        "</main></body></html>",
    ]  # fmt: skip
    return "\n".join(filter(None, parts)) + "\n"


def _servers(servers: Mapping[str, Any]) -> str:
    if not servers:
        return ""
    rows = (f"<tr><td>{escape(name)}</td><td>{escape(each['protocol'])}</td><td>{escape(each['host'])}</td></tr>" for name, each in servers.items())  # fmt: skip
    return _table(("server", "protocol", "host"), rows)


def _channel(document: Mapping[str, Any], name: str, channel: Mapping[str, Any]) -> str:
    parts = [f'<h2 id="{escape(name)}"><code>{escape(str(channel["address"] or name))}</code></h2>']
    for operation in document.get("operations", {}).values():
        if operation["channel"]["$ref"] == f"#/channels/{name}":
            group = operation.get("x-consumer-group")
            who = f" as group <code>{escape(group)}</code>" if group else ""
            what = escape(operation.get("description", ""))
            parts.append(f'<p><span class="tag">{operation["action"]}</span>{who} {what}</p>')
    messages = channel.get("messages", {}).values()
    return "\n".join([*parts, *(_message(document, resolve(document, each["$ref"])) for each in messages)])


def _message(document: Mapping[str, Any], message: Mapping[str, Any]) -> str:
    headers = message.get("headers", {}).get("properties", {})
    facts = [message.get("contentType"), f"key: {message['x-key']}" if "x-key" in message else None]
    tags = "".join(f'<span class="tag">{escape(str(each))}</span>' for each in facts if each)
    rows = (f"<tr><td><code>{escape(name)}</code></td><td>{_type(each)}</td></tr>" for name, each in headers.items())  # fmt: skip
    payload = message["payload"]
    return "\n".join(
        [
            f"<h3>{escape(str(message['name']))}</h3>",
            _paragraph(message.get("description")),
            f"<p>{tags}</p>",
            _table(("header", "value"), rows),
            _table(("field", "type", "required", ""), _fields(document, payload)),
            f"<pre>{escape(json.dumps(example(document, payload), indent=2, ensure_ascii=False))}</pre>",
        ]
    )


def _fields(document: Mapping[str, Any], schema: Any, path: str = "", depth: int = 0) -> Iterable[str]:
    schema = _plain(document, schema)
    required = schema.get("required", ())
    for name, each in schema.get("properties", {}).items():
        inner = _plain(document, each)
        what = escape(str(inner.get("description", "")))
        must = "yes" if name in required else "no"
        yield f"<tr><td><code>{escape(path + name)}</code></td><td>{_type(inner)}</td><td>{must}</td><td>{what}</td></tr>"
        items = _plain(document, inner.get("items", {})) if isinstance(inner.get("items"), dict) else {}
        if depth < DEEPEST and "properties" in inner:
            yield from _fields(document, inner, f"{path}{name}.", depth + 1)
        elif depth < DEEPEST and "properties" in items:
            yield from _fields(document, items, f"{path}{name}[].", depth + 1)


def _plain(document: Mapping[str, Any], schema: Any) -> Mapping[str, Any]:
    """A schema without references, and without the `allOf` that carries a default beside one."""
    while isinstance(schema, Mapping) and ("$ref" in schema or len(schema.get("allOf", ())) == 1):
        schema = resolve(document, schema["$ref"]) if "$ref" in schema else schema["allOf"][0]
    return schema if isinstance(schema, Mapping) else {}


def _type(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if "enum" in schema:
        return " | ".join(f"<code>{escape(json.dumps(each))}</code>" for each in schema["enum"][:20])
    parts = schema.get("anyOf") or schema.get("oneOf")
    if parts:
        return " | ".join(_type(each) for each in parts)
    if "$ref" in schema:
        return escape(schema["$ref"].rpartition("/")[2])
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        return f"list of {_type(schema['items'])}"
    return escape(str(schema.get("format") or schema.get("title") or schema.get("type") or "anything"))


def example(document: Mapping[str, Any], schema: Any, depth: int = 0) -> Any:
    """A payload that the schema allows; beyond `DEEPEST` levels null."""
    schema = _plain(document, schema)
    for name in ("default", "const", "enum"):
        if name in schema:
            return schema[name][0] if name == "enum" else schema[name]
    if depth > DEEPEST:
        return None
    if (parts := schema.get("anyOf") or schema.get("oneOf")) is not None:
        chosen = next((part for part in parts if part.get("type") != "null"), parts[0])
        return example(document, chosen, depth + 1)
    return _composed(document, schema, depth)


def _composed(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int) -> Any:
    if schema.get("type") == "object":
        return {
            name: example(document, each, depth + 1) for name, each in schema.get("properties", {}).items()
        }
    if schema.get("type") == "array":
        items = schema.get("items", {})
        several = items if isinstance(items, list) else [items] if depth < DEEPEST - 1 else []
        return [example(document, each, depth + 1) for each in several]
    return _scalar(schema)


def _scalar(schema: Mapping[str, Any]) -> Any:
    texts = {
        "date-time": "2026-01-31T12:00:00Z", "date": "2026-01-31", "time": "12:00:00", "duration": "P1D",
        "uuid": "00000000-0000-4000-8000-000000000000", "decimal": "9.99", "email": "name@example.com",
        "uri": "https://example.com",
    }  # fmt: skip
    kind = schema.get("type")
    if kind == "string":
        return texts.get(schema.get("format", ""), "text".ljust(schema.get("minLength", 0), "x"))
    if kind in {"integer", "number"}:
        return max(schema.get("minimum", 1), schema.get("exclusiveMinimum", 0) + 1)
    return True if kind == "boolean" else None


def _paragraph(text: Any) -> str:
    return f"<p>{escape(str(text))}</p>" if text else ""


def _table(head: tuple[str, ...], rows: Iterable[str]) -> str:
    body = "\n".join(rows)
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table>" if body else ""
