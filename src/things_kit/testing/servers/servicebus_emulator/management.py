"""The management API: ATOM XML over plain HTTP. What is declared is kept; a part of it is obeyed."""

import copy
import http.server
import queue
import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote, urlparse

from things_kit.testing.servers.servicebus_emulator.amqp import Door
from things_kit.testing.servers.servicebus_emulator.entities import Namespace, Queue, Settings
from things_kit.testing.servers.servicebus_emulator.filters import rule
from things_kit.testing.servers.servicebus_emulator.wire import Login

ATOM: Final = "{http://www.w3.org/2005/Atom}"
SB: Final = "{http://schemas.microsoft.com/netservices/2010/10/servicebus/connect}"
XSI: Final = "{http://www.w3.org/2001/XMLSchema-instance}"
COUNTS: Final = "{http://schemas.microsoft.com/netservices/2011/06/servicebus}"

_COMMON: Final = {
    "AutoDeleteOnIdle": "P10675199DT2H48M5.4775807S",
    "DefaultMessageTimeToLive": "P10675199DT2H48M5.4775807S",
    "EnableBatchedOperations": "true",
    "Status": "Active",
}
_RECEIVED: Final = {
    "LockDuration": "PT1M",
    "RequiresSession": "false",
    "DeadLetteringOnMessageExpiration": "false",
    "MaxDeliveryCount": "10",
}
_STORED: Final = {
    "MaxSizeInMegabytes": "1024",
    "RequiresDuplicateDetection": "false",
    "DuplicateDetectionHistoryTimeWindow": "PT10M",
    "EnablePartitioning": "false",
}
DEFAULTS: Final = {
    "Queue": _COMMON | _RECEIVED | _STORED,
    "Topic": _COMMON | _STORED | {"SupportOrdering": "true"},
    "Subscription": _COMMON | _RECEIVED,
    "Rule": {},
}
READ_ONLY: Final = {
    f"{SB}{name}"
    for name in (
        "MessageCount",
        "CountDetails",
        "SizeInBytes",
        "SubscriptionCount",
        "CreatedAt",
        "UpdatedAt",
        "AccessedAt",
    )
}
FOREVER: Final = 1e9

_DURATION: Final = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?")


class Refusal(Exception):
    """A status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Management:
    """All entities as they were declared. A path is (topic,), (topic, "subscriptions", name), ... in lower case."""

    def __init__(self, namespace: Namespace, door: Door) -> None:
        self._namespace, self._door = namespace, door
        self._described: dict[tuple[str, ...], tuple[str, ET.Element]] = {}

    def handle(
        self, method: str, path: tuple[str, ...], body: bytes, update: bool
    ) -> tuple[int, ET.Element | None]:
        """Answer one request."""
        key = tuple(part.lower() for part in path)
        if method == "PUT":
            return self._put(path, key, body, update)
        if method == "GET" and (key[0] == "$resources" or len(key) in {2, 4}):
            return 200, self._list(key)
        if key == ("$namespaceinfo",):
            return 200, _namespace_info()
        if key not in self._described:
            raise Refusal(404, f"SubCode=40400. Not Found. Entity '{'/'.join(path)}' was not found")
        if method == "DELETE":
            self.delete(key)
            return 200, None
        return 200, self._entry(key)

    def _put(
        self, path: tuple[str, ...], key: tuple[str, ...], body: bytes, update: bool
    ) -> tuple[int, ET.Element]:
        found = key in self._described
        if found and not update:
            raise Refusal(409, f"SubCode=40900. Conflict. {path[-1]} already exists.")
        if len(key) > 1 and key[:-2] not in self._described:
            raise Refusal(404, f"SubCode=40400. Entity '{path[-3]}' was not found")
        parsed = ET.fromstring(body)  # noqa: S314 - from a test
        described = next((each for each in parsed.iter() if each.tag.endswith("Description")), None)
        if described is None:
            raise Refusal(400, "there is no description")
        self.create(path[-1], key, described)
        return 200 if found else 201, self._entry(key)

    def create(self, name: str, key: tuple[str, ...], described: ET.Element) -> None:
        """Declare an entity, or change one."""
        for each in list(described):
            if each.tag in READ_ONLY:
                described.remove(each)
        kind = _kind(described)
        if kind == "Rule":
            self._namespace.queues["/".join(key[:3])].rules[key[4]] = _rule(described)
        elif kind == "Topic":
            topic = self._namespace.topics.get(key[0])
            if topic is None:
                self._namespace.add_queue(key[0], _settings(described))
                del self._namespace.queues[key[0]]
        else:
            self._namespace.add_queue("/".join(key), _settings(described))
        new = key not in self._described
        self._described[key] = name, described
        self._namespace.journal.write("created", name, key, ET.tostring(described))
        if kind == "Subscription" and new:
            self.create("$Default", (*key, "rules", "$default"), _default_rule())

    def delete(self, key: tuple[str, ...]) -> None:
        """Delete an entity with all below it."""
        for each in [each for each in self._described if each[: len(key)] == key]:
            del self._described[each]
        if len(key) == 5:
            self._namespace.queues["/".join(key[:3])].rules.pop(key[4], None)
        else:
            self._namespace.drop("/".join(key))
            self._door.forget("/".join(key))
        self._namespace.journal.write("deleted", key)

    def _list(self, key: tuple[str, ...]) -> ET.Element:
        feed = ET.Element(f"{ATOM}feed")
        ET.SubElement(feed, f"{ATOM}title", {"type": "text"}).text = key[-1]
        above = () if key[0] == "$resources" else key[:-1]
        for each in sorted(self._described):
            kind = _kind(self._described[each][1]).lower()
            if (
                each[:-2] == above
                and len(each) == len(above) + (2 if above else 1)
                and key[1 if not above else -1] == f"{kind}s"
            ):
                feed.append(self._entry(each))
        return feed

    def _entry(self, key: tuple[str, ...]) -> ET.Element:
        name, described = self._described[key]
        kind, now = _kind(described), datetime.now(UTC).isoformat().replace("+00:00", "Z")
        entry = ET.Element(f"{ATOM}entry")
        ET.SubElement(entry, f"{ATOM}id").text = "sb://stand-in/" + "/".join(key)
        ET.SubElement(entry, f"{ATOM}title", {"type": "text"}).text = name
        for tag in ("published", "updated"):
            ET.SubElement(entry, f"{ATOM}{tag}").text = now
        content = ET.SubElement(entry, f"{ATOM}content", {"type": "application/xml"})
        shown = copy.deepcopy(described)
        content.append(shown)
        for tag, value in DEFAULTS[kind].items():
            if shown.find(f"{SB}{tag}") is None:
                ET.SubElement(shown, f"{SB}{tag}").text = value
        for tag in ("CreatedAt",) if kind == "Rule" else ("CreatedAt", "UpdatedAt", "AccessedAt"):
            ET.SubElement(shown, f"{SB}{tag}").text = now
        if kind != "Rule":
            ET.SubElement(shown, f"{SB}SizeInBytes").text = "0"
            self._count(shown, "/".join(key))
        return entry

    def _count(self, shown: ET.Element, path: str) -> None:
        source: Queue | None = self._namespace.queues.get(path)
        topic = self._namespace.topics.get(path)
        counts = {
            "ActiveMessageCount": len(source.entries) if source else 0,
            "DeadLetterMessageCount": len(source.dead) if source else 0,
            "ScheduledMessageCount": len(topic.scheduled) if topic else 0,
            "TransferMessageCount": 0,
            "TransferDeadLetterMessageCount": 0,
        }
        ET.SubElement(shown, f"{SB}MessageCount").text = str(sum(counts.values()))
        details = ET.SubElement(shown, f"{SB}CountDetails")
        for tag, number in counts.items():
            ET.SubElement(details, f"{COUNTS}{tag}").text = str(number)


def serve(management: Management, door: Door, port: int, login: Login) -> None:
    """Answer HTTP in a thread; what is asked for is done in the reactor's."""

    class Requests(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits for the client's delayed acknowledgement
        wbufsize = -1

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = tuple(unquote(part) for part in urlparse(self.path).path.strip("/").split("/"))
            results: queue.SimpleQueue[tuple[int, ET.Element | None]] = queue.SimpleQueue()

            def call() -> None:
                try:
                    if not login.allows(self.headers.get("Authorization", "")):
                        raise Refusal(401, "InvalidSignature: The token has an invalid signature.")
                    update = self.headers.get("If-Match") is not None
                    results.put(management.handle(self.command, path, body, update))
                except Refusal as refusal:
                    results.put((refusal.status, _error(refusal.status, str(refusal))))
                except (ValueError, KeyError) as error:
                    results.put((400, _error(400, str(error))))

            door.ask(call)
            status, answer = results.get()
            text = b"" if answer is None else ET.tostring(answer)
            self.send_response(status)
            self.send_header("Content-Type", "application/atom+xml;type=entry;charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_DELETE = _answer  # noqa: N815

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Requests)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def restore(namespace: Namespace, management: Management) -> None:
    """Make of the journal what it was."""
    for what, *rest in _records(namespace):
        if what == "created":
            management.create(rest[0], tuple(rest[1]), ET.fromstring(rest[2]))  # noqa: S314
        elif what == "deleted":
            management.delete(tuple(rest[0]))


def _records(namespace: Namespace) -> Iterator[list[Any]]:
    """Those of entities; those of messages are played back here."""
    from things_kit.testing.servers.servicebus_emulator.playback import play  # noqa: PLC0415 - a circle otherwise

    for record in namespace.journal.read():
        if not play(namespace, record):
            yield record


def _error(status: int, reason: str) -> ET.Element:
    error = ET.Element("Error")
    ET.SubElement(error, "Code").text = str(status)
    ET.SubElement(error, "Detail").text = reason
    return error


def _namespace_info() -> ET.Element:
    entry = ET.Element(f"{ATOM}entry")
    ET.SubElement(entry, f"{ATOM}title").text = "stand-in"
    info = ET.SubElement(
        ET.SubElement(entry, f"{ATOM}content", {"type": "application/xml"}), f"{SB}NamespaceInfo"
    )
    for tag, value in (
        ("CreatedTime", "2026-01-01T00:00:00Z"), ("MessagingSKU", "Standard"),
        ("ModifiedTime", "2026-01-01T00:00:00Z"), ("Name", "stand-in"), ("NamespaceType", "Messaging"),
    ):  # fmt: skip
        ET.SubElement(info, f"{SB}{tag}").text = value
    return entry


def _default_rule() -> ET.Element:
    made = ET.Element(f"{SB}RuleDescription")
    lets_in = ET.SubElement(made, f"{SB}Filter", {f"{XSI}type": "TrueFilter"})
    ET.SubElement(lets_in, f"{SB}SqlExpression").text = "1=1"
    ET.SubElement(made, f"{SB}Action", {f"{XSI}type": "EmptyRuleAction"})
    ET.SubElement(made, f"{SB}Name").text = "$Default"
    return made


def _kind(described: ET.Element) -> str:
    return described.tag.partition("}")[2].removesuffix("Description")


def _rule(described: ET.Element) -> Any:
    found = described.find(f"{SB}Filter")
    if found is None:
        return rule("TrueFilter", "")
    kind = found.get(f"{XSI}type", "").rpartition(":")[2]
    return rule(kind, found.findtext(f"{SB}SqlExpression") or "")


def _settings(described: ET.Element) -> Settings:
    def text(tag: str) -> str:
        return described.findtext(f"{SB}{tag}") or DEFAULTS["Queue"][tag]

    ttl = _seconds(text("DefaultMessageTimeToLive"))
    return Settings(
        lock=_seconds(text("LockDuration")),
        most=int(text("MaxDeliveryCount")),
        sessions=text("RequiresSession") == "true",
        dedup=_seconds(text("DuplicateDetectionHistoryTimeWindow"))
        if text("RequiresDuplicateDetection") == "true"
        else 0.0,
        ttl=0.0 if ttl > FOREVER else ttl,
    )


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text} is no duration")
    days, hours, minutes, seconds = (float(each or 0) for each in found.groups())
    return days * 86_400 + hours * 3_600 + minutes * 60 + seconds
