"""Every field of `config.yaml`, from the settings of the modules."""

import json
from importlib import import_module
from inspect import getdoc
from typing import Any

from tests.reference.consumer import BATCH, described
from tests.reference.tables import code, table
from things_kit import App, RetryPolicy
from things_kit.app.shown import schema
from things_kit.modules.broker_settings import BrokerSettings
from things_kit.modules.config import BUILT_IN, sections_of

HEADS = ["field, variable", "type", "default", "what it is"]
INTRODUCTION = """# Every field of the configuration

What `config.yaml` may say, and by which variable the environment replaces it. `things-kit config schema` prints the same as a JSON Schema,
which editors use to complete and to check; `things-kit config` prints what is in force. How the two are read is told in
[Applications](../applications.md#configuration).

A variable whose name ends in `_FILE` names a file that has the value: `KAFKA_PASSWORD_FILE=/run/secrets/kafka`. A list is written with
commas, a field of a field with two underscores, nothing as `null`.
"""
BROKERS = """## Brokers: what all sections have

A broker's section is named as its module: `kafka`, `rabbitmq`, and so on. Each has these fields, its own, and every [argument of a
consumer](consumer.md). In the variables, `SECTION` stands for its name in capitals, as in `KAFKA_TOPIC`.
"""
SAID = {
    "topic": "What is consumed, where it is one topic.",
    "topics": "The same, where it is several.",
    "group": "Another word for `group_id`.",
    "url": "Where the broker is, in place of its own fields; see [Brokers](../brokers.md).",
    "options": "Options of the URL's query, by name.",
    "username": "The login; a password is best read from a file.",
    "password": "The password.",
    "brokers": "One or more, as `host:9092`.",
    "hosts": "One or more, as `host` or `host:port`.",
    "servers": "One or more, as `host:4222`.",
    "vhost": "The virtual host.",
    "tls": "Whether the connection is encrypted.",
    "db": "The number of the database.",
    "database": "The name of the database.",
    "path": "The file.",
    "region": "The region of AWS, such as `us-east-1`.",
    "endpoint": "Where an emulator is, in place of the service.",
    "project": "The project of Google Cloud.",
    "namespace": "The namespace, with its domain.",
    "key_name": "The name of the access key.",
    "key": "The access key.",
    "name": "All that give the same name share the broker; without one it is the app's own.",
    "level": "What is logged at least.",
    "service_name": "The service, as traces and metrics name it.",
    "traces": "Whether there are spans.",
    "metrics": "Whether there are metrics.",
    **{f"retry.{name}": said for name, said in described(getdoc(RetryPolicy) or "", "Attributes").items()},
    **{f"batch.{name}": said for name, said in BATCH.items()},
}


def configuration_page() -> str:
    sections = sections_of(App(*(import_module(f"things_kit.modules.{name}").module for name in BUILT_IN)))
    whole = schema(sections)
    models = {name: resolved(whole, part) for name, part in whole["properties"].items()}
    brokers = [name for name, kind in sections.items() if issubclass(kind, BrokerSettings)]
    common = set.intersection(*(set(models[name]["properties"]) for name in brokers))
    first = models[brokers[0]]["properties"]
    shared = {name: field for name, field in first.items() if name in common}
    parts = [INTRODUCTION, BROKERS, table(HEADS, rows(whole, "SECTION", shared)), ""]
    for name, model in sorted(models.items(), key=lambda each: (each[0] in brokers, each[0])):
        own = {
            field: said
            for field, said in model["properties"].items()
            if name not in brokers or field not in common
        }
        parts += [f"## `{name}`\n", table(HEADS, rows(whole, name.upper(), own)), ""]
    return "\n".join(parts)


def rows(whole: Any, prefix: str, fields: dict[str, Any], within: str = "") -> list[list[str]]:
    found = []
    for name, field in fields.items():
        path = f"{within}.{name}" if within else name
        variable = f"{prefix}_{path.replace('.', '__').upper()}"
        said = field.get("description") or SAID.get(path, "")
        begins = "must be said" if path == "group_id" else default(field)
        found.append([f"{code(path)}<br>{code(variable)}", kind(whole, field), begins, said])
        inner = next((each for each in (field, *field.get("anyOf", [])) if "$ref" in each), None)
        if inner is not None:
            found += rows(whole, prefix, resolved(whole, inner)["properties"], path)
    return found


def resolved(whole: Any, part: Any) -> Any:
    return whole["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def kind(whole: Any, field: Any) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(kind(whole, each) for each in field["anyOf"]))
    if "enum" in field:
        return ", ".join(code(str(each)) for each in field["enum"])
    if "$ref" in field:
        return kind(whole, resolved(whole, field))
    if field.get("format") == "duration":
        return "a duration as `PT5S`"
    names = {
        "string": "text",
        "integer": "whole number",
        "array": "list",
        "object": "fields",
        "boolean": "`true`, `false`",
        "null": "`null`",
    }
    said = str(field.get("type", "any"))
    return names.get(said, said)


def default(field: Any) -> str:
    if "default" not in field:
        return "must be said"
    if isinstance(field["default"], dict | list) and field["default"]:
        return "as below" if isinstance(field["default"], dict) else code(json.dumps(field["default"]))
    return code(json.dumps(field["default"]))
