"""An AsyncAPI document as one self-contained page, readable without JavaScript and without a network."""

import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Final

from things_kit.contracts.compatibility import resolve
from things_kit.contracts.examples import DEEPEST, example, plain

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h2 { border-top: 1px solid var(--line); padding-top: 1.5rem; margin-top: 2.5rem; }
.text { white-space: pre-line; }
table { border-collapse: collapse; width: 100%; margin: 0 0 1.5rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
td.name { min-width: 8rem; max-width: 22rem; }
.must { white-space: nowrap; }
caption { display: none; }
.soft { opacity: .7; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; overflow-wrap: normal; border-radius: .4rem; }
.tag { border: 1px solid var(--line); border-radius: 1rem; padding: .05rem .6rem; font-size: .85em; margin-right: .3rem; display: inline-block; }
nav a { margin-right: 1rem; display: inline-block; }
@media (max-width: 40rem) {
  caption { display: block; text-align: left; font-weight: bold; }
  thead { position: absolute; clip-path: inset(50%); height: 1px; width: 1px; overflow: hidden; }
  tr { display: block; border-bottom: 1px solid var(--line); padding: .4rem 0; }
  td { display: inline-block; border: 0; padding: 0 .8rem 0 0; }
  td.more { display: block; }
  td:empty { display: none; }
}
"""

_BOUNDS: Final = {
    "minimum": "at least {}", "exclusiveMinimum": "more than {}", "maximum": "at most {}", "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}", "minLength": "at least {} characters", "maxLength": "at most {} characters",
    "minItems": "at least {} items", "maxItems": "at most {} items", "pattern": "matches {}", "default": "{} by default",
}  # fmt: skip

MOST: Final = 30
"""Values of an enumeration, or types of a union, that are shown."""


def page(document: Mapping[str, Any]) -> str:
    """The page of a document."""
    info = document["info"]
    title = escape(str(info["title"]))
    channels = document.get("channels", {})
    types = sorted(_named(document))
    links = [(name, str(each["address"] or name)) for name, each in channels.items()]
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><main>",
        f"<h1>{title} <small>{escape(str(info['version']))}</small></h1>",
        _paragraph(info.get("description")),
        _servers(document.get("servers", {})),
        "<nav>",
        *(f'<a href="#{escape(name)}">{escape(text)}</a>' for name, text in links),
        '<a href="#type-">types</a>' if types else "",
        "</nav>",
        *(_channel(document, name, channel) for name, channel in channels.items()),
        '<h2 id="type-">Types</h2>' if types else "",
        *(_type_of_its_own(document, name) for name in types),
        "</main></body></html>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


def _servers(servers: Mapping[str, Any]) -> str:
    rows = (
        _row(escape(name), escape(each["protocol"]), f"<code>{escape(each['host'])}</code>")
        for name, each in servers.items()
    )
    return _table("servers", ("server", "protocol", "host"), rows)


# --- channels and their messages


def _channel(document: Mapping[str, Any], name: str, channel: Mapping[str, Any]) -> str:
    parts = [f'<h2 id="{escape(name)}"><code>{escape(str(channel["address"] or name))}</code></h2>']
    if channel["address"] is None:
        parts.append("<p>Whoever asks says where the answer goes.</p>")
    for operation in document.get("operations", {}).values():
        if operation["channel"]["$ref"] == f"#/channels/{name}":
            parts += _operation(operation)
    messages = channel.get("messages", {}).values()
    return "\n".join([*parts, *(_message(document, resolve(document, each["$ref"])) for each in messages)])


def _operation(operation: Mapping[str, Any]) -> Iterator[str]:
    said = [f'<span class="tag">{escape(operation["action"])}</span>']
    if group := operation.get("x-consumer-group"):
        said.append(f"by the group <code>{escape(str(group))}</code>")
    if reply := operation.get("reply"):
        answers = operation["action"] == "receive"
        name = reply["channel"]["$ref"].rpartition("/")[2]
        said.append(
            f'{"answers" if answers else "is answered"} in <a href="#{escape(name)}">{escape(name)}</a>'
        )
    yield f"<p>{' '.join(said)}</p>"
    yield _paragraph(operation.get("description"))


def _message(document: Mapping[str, Any], message: Mapping[str, Any]) -> str:
    headers = message.get("headers", {}).get("properties", {})
    facts = {
        "": message.get("contentType"),
        "key: ": message.get("x-key"),
        "version ": message.get("x-version"),
    }
    tags = "".join(
        f'<span class="tag">{escape(f"{name}{each}")}</span>' for name, each in facts.items() if each
    )
    rows = (_row(f"<code>{escape(name)}</code>", _type(each), _said(each)) for name, each in headers.items())
    payload = message["payload"]
    return "\n".join(
        [
            f"<h3>{escape(str(message['name']))}</h3>",
            _paragraph(message.get("description")),
            f"<p>{tags}</p>",
            _table("headers", ("header", "value", ""), rows),
            _fields(document, payload) or f"<p>Value: {_type(plain(document, payload))}</p>",
            f"<pre>{escape(json.dumps(example(document, payload), indent=2, ensure_ascii=False))}</pre>",
        ]
    )


# --- types


def _named(document: Mapping[str, Any]) -> set[str]:
    """The types that others have in them; the payload of a message is shown with it."""
    found: set[str] = set()
    open_: list[Any] = [
        _without_name(document, each["payload"])
        for each in document.get("components", {}).get("messages", {}).values()
    ]
    while open_:
        schema = open_.pop()
        if isinstance(schema, Mapping):
            name = _name(schema.get("$ref"))
            if name is not None and name not in found:
                found.add(name)
                open_.append(resolve(document, schema["$ref"]))
            open_ += schema.values()
        elif isinstance(schema, list):
            open_ += schema
    return found


def _without_name(document: Mapping[str, Any], schema: Any) -> Any:
    return (
        resolve(document, schema["$ref"])
        if isinstance(schema, Mapping) and _name(schema.get("$ref"))
        else schema
    )


def _name(reference: Any) -> str | None:
    front = "#/components/schemas/"
    return (
        reference.removeprefix(front) if isinstance(reference, str) and reference.startswith(front) else None
    )


def _type_of_its_own(document: Mapping[str, Any], name: str) -> str:
    schema = document["components"]["schemas"][name]
    parts = [
        f'<h3 id="type-{escape(name)}">{escape(name)}</h3>',
        _paragraph(schema.get("description")),
        _fields(document, schema) or f"<p>{_type(schema)} {_said(schema, described=False)}</p>",
    ]
    return "\n".join(filter(None, parts))


def _fields(document: Mapping[str, Any], schema: Any) -> str:
    rows = _rows(document, plain(document, schema))
    return _table("fields", ("field", "type", "", ""), rows)


def _rows(
    document: Mapping[str, Any], schema: Mapping[str, Any], path: str = "", depth: int = 0
) -> Iterator[str]:
    required = schema.get("required", ())
    for name, each in schema.get("properties", {}).items():
        must = (
            '<span class="must">required</span>'
            if name in required
            else '<span class="must soft">optional</span>'
        )
        yield _row(f"<code>{escape(path + name)}</code>", _type(each), must, _said(each))
        if depth < DEEPEST and isinstance(each, Mapping):  # what has a name is shown by itself
            items = each.get("items")
            yield from _rows(document, each, f"{path}{name}.", depth + 1)
            if isinstance(items, Mapping):
                yield from _rows(document, items, f"{path}{name}[].", depth + 1)


def _type(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "anything" if schema is not False else "nothing"
    if (name := _name(schema.get("$ref"))) is not None:
        return f'<a href="#type-{escape(name)}">{escape(name)}</a>'
    if len(schema.get("allOf", ())) == 1:
        return _type(schema["allOf"][0])
    if (values := schema.get("enum", [schema["const"]] if "const" in schema else None)) is not None:
        return _either(map(_code, values))
    if parts := schema.get("anyOf") or schema.get("oneOf"):
        return _either(map(_type, parts))
    return _array(schema) if schema.get("type") == "array" else _other(schema)


def _other(schema: Mapping[str, Any]) -> str:
    others = schema.get("additionalProperties")
    if schema.get("type") == "object" and isinstance(others, Mapping) and not schema.get("properties"):
        return f"map of {_type(others)}"
    if "properties" in schema and "title" in schema:  # of a field pydantic says its name once more
        return escape(str(schema["title"]))
    kind = schema.get("format") or schema.get("type") or schema.get("title") or "anything"
    return escape(kind if isinstance(kind, str) else " or ".join(map(str, kind)))


def _code(value: Any) -> str:
    return f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"


def _either(parts: Iterable[str]) -> str:
    """Some of them, if they are many: a page shows what there is, the document has all."""
    some = [*parts]
    return " or ".join([*some[:MOST], *([f"{len(some) - MOST} more"] if len(some) > MOST else [])])


def _array(schema: Mapping[str, Any]) -> str:
    items = schema.get("items")
    places = [*schema.get("prefixItems", items if isinstance(items, list) else [])]
    if places:
        return f"({', '.join(map(_type, places))})"
    what = "set" if schema.get("uniqueItems") else "list"
    return f"{what} of {_type(items)}" if isinstance(items, Mapping) and items else what


def _said(schema: Any, *, described: bool = True) -> str:
    """What a schema says beside its type: bounds, the default, and in words."""
    if not isinstance(schema, Mapping):
        return ""
    bounds = ", ".join(text.format(_code(schema[name])) for name, text in _BOUNDS.items() if name in schema)
    text = escape(str(schema.get("description", ""))) if described else ""
    inner = schema["allOf"][0] if len(schema.get("allOf", ())) == 1 else None
    return " ".join(
        filter(None, [text, f'<span class="soft">{bounds}</span>' if bounds else "", _said(inner)])
    )


# --- HTML


def _paragraph(text: Any) -> str:
    return f'<p class="text">{escape(str(text))}</p>' if text else ""


def _row(name: str, *cells: str) -> str:
    *before, last = cells
    middle = "".join(f"<td>{each}</td>" for each in before)
    return f'<tr><td class="name">{name}</td>{middle}<td class="more">{last}</td></tr>'


def _table(caption: str, head: tuple[str, ...], rows: Iterable[str]) -> str:
    body = "\n".join(rows)
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    return (
        f"<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table>"
        if body
        else ""
    )
