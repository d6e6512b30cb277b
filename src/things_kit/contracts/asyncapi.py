"""AsyncAPI 3.0 documents of topics and of who sends and receives them."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from things_kit.codecs.docstrings import docstring
from things_kit.codecs.json_schema import Schemas, safe_name
from things_kit.messaging.message import Message
from things_kit.messaging.names import CONTENT_ENCODING, CORRELATION_ID, DEADLINE, REPLY_TO, SCHEMA_VERSION
from things_kit.messaging.topic import Topic

VERSION: Final = "3.0.0"

_OF_A_REQUEST: Final = {
    REPLY_TO: "Of a request: the topic where its reply goes.",
    CORRELATION_ID: "Of a request: what its reply says too.",
    DEADLINE: "Of a request: when nobody waits for the reply any more.",
}


class Operation(msgspec.Struct, frozen=True):
    """That an application sends or receives a topic.

    Attributes:
        action: From the application's side.
        topic: The topic, by name where its contract is not known.
        server: The server's name; None where there is one for all.
        group: The consumer group of a receiver.
        description: What is done with it.
    """

    action: Literal["send", "receive"]
    topic: Topic[Any] | str
    server: str | None = None
    group: str | None = None
    description: str | None = None


class Server(msgspec.Struct, frozen=True):
    """A broker: its protocol, and its host where that is known."""

    protocol: str
    host: str | None = None


def asyncapi(
    title: str,
    *,
    version: str = "0.0.0",
    description: str | None = None,
    servers: Mapping[str, Server] = {},
    operations: Sequence[Operation] = (),
    topics: Iterable[Topic[Any]] = (),
) -> dict[str, Any]:
    """A document of an application, or of topics alone. Raises TypeError for a type that cannot be described."""
    document = _Document()
    for topic in topics:
        document.channel(topic, None)
    for operation in operations:
        document.operation(operation)
    info: dict[str, Any] = {"title": title, "version": version}
    if description:
        info["description"] = description
    found: dict[str, Any] = {"asyncapi": VERSION, "info": info, "defaultContentType": "application/json"}
    if servers:
        found["servers"] = {safe_name(name): _server(server) for name, server in servers.items()}
    found |= {"channels": document.channels, "operations": document.operations}
    components = {"messages": document.messages, "schemas": document.schemas.components}
    found["components"] = {name: each for name, each in components.items() if each}
    return found


def _server(server: Server) -> dict[str, Any]:
    if server.host is not None:
        return {"host": server.host, "protocol": server.protocol}
    host = {"description": "Where the configuration says.", "default": "localhost"}
    return {"host": "{host}", "protocol": server.protocol, "variables": {"host": host}}


class _Document:
    def __init__(self) -> None:
        self.schemas = Schemas()
        self.channels: dict[str, Any] = {}
        self.operations: dict[str, Any] = {}
        self.messages: dict[str, Any] = {}
        self._ids: dict[str, str] = {}
        self._replies: dict[str, str] = {}  # of a topic's channel, that of its replies

    def operation(self, operation: Operation) -> None:
        channel = self.channel(operation.topic, operation.server)
        messages = self.channels[channel].get("messages", {})
        found: dict[str, Any] = {"action": operation.action, "channel": {"$ref": f"#/channels/{channel}"}}
        if operation.description:
            found["description"] = operation.description
        if messages:
            found["messages"] = [{"$ref": f"#/channels/{channel}/messages/{each}"} for each in messages]
        if isinstance(operation.topic, Topic) and operation.topic.reply is not None:
            found["reply"] = self._reply(channel)
        if operation.group is not None:
            found["x-consumer-group"] = operation.group
            if operation.server == "kafka":
                found["bindings"] = {"kafka": {"groupId": {"type": "string", "enum": [operation.group]}}}
        name = "_".join(
            filter(None, (operation.action, channel, operation.group and safe_name(operation.group)))
        )
        self.operations[_free(name, self.operations)] = found

    def channel(self, topic: Topic[Any] | str, server: str | None) -> str:
        """The id of a topic's channel, made where it is missing."""
        address = topic if isinstance(topic, str) else topic.name
        if (known := self._ids.get(address)) is None:
            known = self._ids[address] = _free(safe_name(address), self.channels)
            self.channels[known] = {"address": address}
        channel = self.channels[known]
        if server is not None:
            reference = {"$ref": f"#/servers/{safe_name(server)}"}
            if reference not in channel.setdefault("servers", []):
                channel["servers"].append(reference)
        if isinstance(topic, Topic):
            messages = channel.setdefault("messages", {})
            for value, kind in topic.kinds.items():
                name = value if value is not None else _name(kind)
                if safe_name(name) not in messages:
                    messages[safe_name(name)] = {
                        "$ref": f"#/components/messages/{self._message(topic, value, name)}"
                    }
            if topic.reply is not None:
                self._reply_channel(topic, known)
        return known

    def _reply_channel(self, topic: Topic[Any], channel: str) -> None:
        """Whoever asks says where the reply goes, so its channel has no address."""
        if channel not in self._replies:
            known = self._replies[channel] = _free(f"{channel}_reply", self.channels)
            name = safe_name(_name(topic.reply))
            reference = {"$ref": f"#/components/messages/{self._answer(topic.reply)}"}
            self.channels[known] = {"address": None, "messages": {name: reference}}

    def _reply(self, channel: str) -> dict[str, Any]:
        known = self._replies[channel]
        return {
            "address": {"location": f"$message.header#/{REPLY_TO}"},
            "channel": {"$ref": f"#/channels/{known}"},
            "messages": [
                {"$ref": f"#/channels/{known}/messages/{name}"} for name in self.channels[known]["messages"]
            ],
        }

    def _answer(self, kind: Any) -> str:
        message = {"name": _name(kind), "title": _name(kind)}
        if (content_type := _content_type_of_answer(kind)) is not None:
            message["contentType"] = content_type
        free = _free(safe_name(_name(kind)), self.messages)
        self.messages[free] = message | {
            "correlationId": {"location": f"$message.header#/{CORRELATION_ID}"},
            "headers": {"type": "object", "properties": {CORRELATION_ID: {"type": "string"}}},
            "payload": {} if kind is Message else self.schemas.of(kind),
        }
        return free

    def _message(self, topic: Topic[Any], value: str | None, name: str) -> str:
        kind = topic.kinds[value]
        message: dict[str, Any] = {"name": name, "title": _name(kind), "contentType": topic.content_type}
        if doc := docstring(kind):
            message["description"] = inspect.cleandoc(doc)
        message["headers"] = _headers(topic, value)
        message["payload"] = self.schemas.of(kind)
        codec: Any = getattr(topic.codec, "codec", topic.codec)  # the data's of CloudEvents
        if hasattr(codec, "described"):
            message |= codec.described(topic, value)
        if topic.key is not None:
            message["x-key"] = topic.key if isinstance(topic.key, str) else "computed"
        if topic.by is not None:
            message["x-type-header"] = topic.by
        if topic.version is not None:
            message["x-version"] = topic.version
            message["x-accepts-newer"] = topic.accept_newer
        free = _free(safe_name(name), self.messages)
        self.messages[free] = message
        return free


def _headers(topic: Topic[Any], value: str | None) -> dict[str, Any]:
    properties: dict[str, Any] = {"content-type": {"type": "string", "const": topic.content_type}}
    if topic.by is not None:
        properties[topic.by] = {"type": "string", "const": value}
    if topic.version is not None:
        properties[SCHEMA_VERSION] = {"type": "string", "const": str(topic.version)}
    if topic.transforms:
        tokens = ", ".join(sorted({token for each in topic.transforms for token in each.tokens}))
        done = f"What was done to the value, in order, where anything was; undone by: {tokens}."
        properties[CONTENT_ENCODING] = {"type": "string", "description": done}
    if topic.reply is not None:
        properties |= {name: {"type": "string", "description": text} for name, text in _OF_A_REQUEST.items()}
    properties |= {name: {"type": "string", "const": text} for name, text in topic.headers.items()}
    return {"type": "object", "properties": properties}


def _content_type_of_answer(kind: Any) -> str | None:
    """That of what a handler returns; None where it is a whole message, which says it itself."""
    if kind is Message:
        return None
    if kind is str:
        return "text/plain; charset=utf-8"
    if kind is bytes:
        return "application/octet-stream"
    return "application/protobuf" if hasattr(kind, "SerializeToString") else "application/json"


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", None) or str(kind)


def _free(name: str, taken: Mapping[str, Any]) -> str:
    free, number = name, 2
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free
