"""The AMQP side: links to entities, deliveries and their settlement, and the request links of Service Bus."""

import contextlib
import os
import queue
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Final, cast
from urllib.parse import urlparse

from proton import (
    UNDESCRIBED,
    Array,
    Condition,
    Data,
    Delivery,
    Endpoint,
    Link,
    Message,
    int32,
    symbol,
    timestamp,
)
from proton.reactor import ApplicationEvent, EventInjector, Handler

from things_kit.testing.servers.servicebus_emulator.entities import Entry, Namespace, Queue
from things_kit.testing.servers.servicebus_emulator.wire import (
    Login,
    decoded,
    encoded,
    envelope,
    identity,
    messages_of,
    tag_of,
)

TICK: Final = 0.02
NET_EPOCH: Final = 621355968000000000
SESSION: Final = symbol("com.microsoft:session-filter")
LOST: Final = (410, "The lock supplied is invalid.", "com.microsoft:message-lock-lost")
LARGEST: Final = 1024 * 1024
BATCH: Final = 256 * 1024


class Taker:
    """A link that receives from a queue, perhaps from one session of it."""

    def __init__(self, link: Any, source: Queue, session: str | None) -> None:
        self.link, self.source, self.session = link, source, session


class Waker(EventInjector):  # type: ignore[misc, unused-ignore]
    """Wakes the reactor from another thread. Proton may say twice that there is something to read."""

    def __init__(self) -> None:
        super().__init__()
        os.set_blocking(self.pipe[0], False)

    def on_selectable_readable(self, event: Any) -> None:
        """Dispatch what was triggered."""
        with contextlib.suppress(BlockingIOError):
            super().on_selectable_readable(event)


class Door(Handler):  # type: ignore[misc, unused-ignore]
    """What Proton calls."""

    def __init__(self, namespace: Namespace, port: int, login: Login) -> None:
        super().__init__()
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waker = Waker()
        self._namespace, self._port, self._login = namespace, port, login
        self._takers: dict[int, Taker] = {}
        self._waiting: list[tuple[Any, Queue, str | None, float]] = []
        self._senders: dict[int, str] = {}
        self._answers: dict[tuple[int, str], Any] = {}
        self._deliveries: dict[bytes, tuple[Queue, Entry, uuid.UUID]] = {}
        self._let_in: set[int] = set()
        self._transports: dict[int, Any] = {}

    def on_reactor_init(self, event: Any) -> None:
        """Listen."""
        self._container = event.container
        self._container.listen(f"127.0.0.1:{self._port}")
        self._container.selectable(self._waker)
        self._container.schedule(TICK, self)

    def ask(self, call: Callable[[], None]) -> None:
        """Have something done in the reactor's thread, at once."""
        self.calls.put(call)
        self._waker.trigger(ApplicationEvent("call"))

    def on_call(self, event: Any) -> None:
        """Do what the management side asks for."""
        while not self.calls.empty():
            self.calls.get()()

    def on_timer_task(self, event: Any) -> None:
        """Let time pass."""
        self.on_call(event)
        now = time.time()
        self._namespace.tick(now, self._hand_out)
        waiting, self._waiting = self._waiting, []
        for link, source, wanted, until in waiting:
            self._accept(link, source, wanted, until)
        self._container.schedule(TICK, self)

    def on_connection_bound(self, event: Any) -> None:
        """Anybody may connect; who may do anything is seen later."""
        event.transport.sasl().allowed_mechs("ANONYMOUS")
        event.transport.max_frame_size = 65536
        event.transport.idle_timeout = 120

    def cut(self) -> None:
        """Break all connections there are, without a word."""
        for transport in list(self._transports.values()):
            transport.close_tail()
            transport.close_head()

    def on_connection_remote_open(self, event: Any) -> None:
        """Open as well."""
        self._transports[identity(event.connection)] = event.transport
        event.connection.container = "service-bus-stand-in"
        event.connection.open()

    def on_session_remote_open(self, event: Any) -> None:
        """Open as well."""
        event.session.open()

    # --- links

    def on_link_remote_open(self, event: Any) -> None:
        """A sender, a receiver, or one of a pair for requests."""
        link = event.link
        if link.state & Endpoint.LOCAL_ACTIVE:
            return
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        link.snd_settle_mode, link.rcv_settle_mode = link.remote_snd_settle_mode, link.remote_rcv_settle_mode
        address = (link.remote_source if link.is_sender else link.remote_target).address or ""
        path = (urlparse(address).path if "://" in address else address).strip("/").lower()
        link.max_message_size = LARGEST
        if path == "$cbs" or path.endswith("$management"):
            self._open_request_link(link, path)
        elif identity(link.connection) not in self._let_in:
            self._refuse(
                link,
                "amqp:unauthorized-access",
                "Unauthorized access. 'Send' or 'Listen' claim(s) are required.",
            )
        elif link.is_receiver:
            self._open_sender(link, path)
        else:
            self._open_receiver(link, path)

    def _open_request_link(self, link: Any, path: str) -> None:
        if link.is_sender:
            self._answers[identity(link.session), path] = link
        else:
            self._senders[identity(link)] = path
        link.open()
        if link.is_receiver:
            link.flow(1000)

    def _open_sender(self, link: Any, path: str) -> None:
        if path not in self._namespace.topics:
            self._refuse_missing(link, path)
            return
        self._senders[identity(link)] = path
        link.properties = {symbol("com.microsoft:max-message-batch-size"): BATCH}
        link.open()
        link.flow(1000)

    def _open_receiver(self, link: Any, path: str) -> None:
        source = self._namespace.queues.get(path)
        if source is None:
            self._refuse_missing(link, path)
            return
        filters = link.remote_source.filter.get_object() if link.remote_source.filter.next() else {}
        if source.settings.sessions != (SESSION in (filters or {})):
            self._refuse(
                link, "amqp:not-allowed", "The entity and the receiver differ in whether there are sessions."
            )
        elif source.settings.sessions:
            wait = (link.remote_properties or {}).get(symbol("com.microsoft:timeout"))
            self._accept(link, source, filters[SESSION], time.time() + (wait / 1000 if wait else 60))
        else:
            link.open()
            self._takers[identity(link)] = Taker(link, source, None)

    def _accept(self, link: Any, source: Queue, wanted: str | None, until: float) -> None:
        """Give a link its session as soon as there is one."""
        if not link.state & Endpoint.REMOTE_ACTIVE:
            return
        session = source.accept(identity(link), wanted)
        if session is None:
            if time.time() >= until:
                self._refuse(link, "com.microsoft:timeout", "no session has messages")
            else:
                self._waiting.append((link, source, wanted, until))
            return
        link.source.filter.put_object({SESSION: session})
        ends = source.sessions[session][1]
        link.properties = {symbol("com.microsoft:locked-until-utc"): int(ends * 10**7) + NET_EPOCH}
        link.open()
        self._takers[identity(link)] = Taker(link, source, session)
        self._hand_out(source)

    def _refuse_missing(self, link: Any, path: str) -> None:
        self._refuse(link, "amqp:not-found", f"The messaging entity '{path}' could not be found.")

    def _refuse(self, link: Any, condition: str, description: str) -> None:
        if link.state & Endpoint.LOCAL_UNINIT:
            link.properties = {symbol("com.microsoft:locked-until-utc"): 0}
            link.open()
        link.condition = Condition(condition, description)
        link.close()

    def forget(self, path: str) -> None:
        """An entity is gone: so are the links to it."""
        for key, taker in list(self._takers.items()):
            if taker.source.path == path or taker.source.path.startswith(f"{path}/"):
                del self._takers[key]
                self._refuse_missing(taker.link, taker.source.path)

    def on_link_flow(self, event: Any) -> None:
        """There is credit."""
        taker = self._takers.get(identity(event.link))
        if taker is not None:
            self._hand_out(taker.source)
            if event.link.drain_mode:
                event.link.drained()

    def on_link_remote_close(self, event: Any) -> None:
        """A link ends; a session with it. Other locks stay until they run out."""
        self._gone(event.link)
        event.link.close()

    on_link_remote_detach = on_link_remote_close

    def on_session_remote_close(self, event: Any) -> None:
        """Close as well; with it all of its links."""
        event.session.close()
        link = event.connection.link_head(0)
        while link:
            if link.session == event.session:
                self._gone(link)
            link = link.next(0)

    def on_connection_remote_close(self, event: Any) -> None:
        """Close as well."""
        event.connection.close()

    def on_transport_closed(self, event: Any) -> None:
        """All links of a connection end."""
        if event.connection is not None:
            self._let_in.discard(identity(event.connection))
            self._transports.pop(identity(event.connection), None)
            link = event.connection.link_head(0)
            while link:
                self._gone(link)
                link = link.next(0)

    def _gone(self, link: Any) -> None:
        key = identity(link)
        self._senders.pop(key, None)
        self._waiting = [each for each in self._waiting if identity(each[0]) != key]
        taker = self._takers.pop(key, None)
        if taker is not None and taker.session is not None:
            taker.source.leave(taker.session, counts=True)

    # --- messages

    def _hand_out(self, source: Queue) -> None:
        for key, taker in [each for each in self._takers.items() if each[1].source is source]:
            if taker.session is not None and source.sessions.get(taker.session, (None,))[0] != key:
                del self._takers[key]
                self._refuse(taker.link, "com.microsoft:session-lock-lost", "The session lock has expired.")
                continue
            while taker.link.credit > 0 and taker.link.state & Endpoint.LOCAL_ACTIVE:
                entry = source.take(key, taker.session)
                if entry is None:
                    break
                self._deliver(taker, source, entry)

    def _deliver(self, taker: Taker, source: Queue, entry: Entry) -> None:
        settled = taker.link.remote_snd_settle_mode == Link.SND_SETTLED
        assert entry.token is not None
        tag = entry.token.bytes_le
        delivery = taker.link.delivery(tag)
        taker.link.stream(encoded(entry))
        taker.link.advance()
        if settled:
            delivery.settle()
            source.remove(entry)
        else:
            self._deliveries[tag] = source, entry, entry.token

    def on_delivery(self, event: Any) -> None:
        """A message was sent to us, or one of ours is settled."""
        delivery, link = event.delivery, event.link
        if link.is_receiver:
            if delivery.readable and not delivery.partial:
                self._receive(link, delivery)
        elif delivery.updated and (delivery.remote_state or delivery.settled) and not delivery.local_state:
            self._settle(delivery)

    def _receive(self, link: Any, delivery: Any) -> None:
        raw = link.recv(delivery.pending) or b""
        link.advance()
        link.flow(1)
        path = self._senders.get(identity(link), "")
        if path == "$cbs" or path.endswith("$management"):
            self._answer(link, path, decoded(raw))
        elif path not in self._namespace.topics:
            self._refuse_missing(link, path)
            return
        elif len(raw) > LARGEST:
            delivery.local.condition = Condition(
                "amqp:link:message-size-exceeded", "The message is too large."
            )
            delivery.update(Delivery.REJECTED)
            delivery.settle()
            return
        else:
            now = time.time()
            for each in messages_of(raw):
                self._namespace.publish(path, each, envelope(each), now)
        delivery.update(Delivery.ACCEPTED)
        delivery.settle()
        for source in list(self._namespace.subscriptions(path)):
            self._hand_out(source)

    def _settle(self, delivery: Any) -> None:
        found = self._deliveries.pop(tag_of(delivery), None)
        if found is None:
            delivery.settle()
            return
        source, entry, token = found
        state, remote = delivery.remote_state, delivery.remote
        if not _settled(source, entry, token, _outcome(state, remote)):
            delivery.local.condition = Condition(LOST[2], LOST[1])
            delivery.update(Delivery.REJECTED)
        elif state == Delivery.MODIFIED:
            delivery.local.failed, delivery.local.undeliverable = remote.failed, remote.undeliverable
            delivery.update(state)
        else:
            delivery.update(state or Delivery.RELEASED)
        delivery.settle()
        self._hand_out(source)

    # --- requests

    def _answer(self, link: Any, path: str, request: Message) -> None:
        said: dict[str, Any] = request.properties or {}
        code, description, condition, body = 200, "OK", None, None
        if path == "$cbs":
            if self._login.allows(str(request.body)):
                self._let_in.add(identity(link.connection))
            else:
                code, description = 401, "InvalidSignature: The token has an invalid signature."
        else:
            operation = str(said.get("operation", "")).removeprefix("com.microsoft:")
            source = self._namespace.queues.get(path.removesuffix("/$management"))
            try:
                answer = _requested(operation, source, request.body)
            except (KeyError, TypeError) as error:
                answer = 400, f"it cannot be read: {error!r}", "amqp:decode-error", None
            code, description, condition, body = answer
        names = (
            ("status-code", "status-description") if path == "$cbs" else ("statusCode", "statusDescription")
        )
        properties = {names[0]: int32(code), names[1]: description}
        if condition is not None:
            properties["errorCondition"] = symbol(condition)
        reply = Message(body=body, properties=properties, correlation_id=request.id)
        back = self._answers.get((identity(link.session), path))
        if back is not None:
            delivery = back.delivery(uuid.uuid4().bytes_le)
            back.stream(reply.encode())
            back.advance()
            delivery.settle()


def _outcome(state: Any, remote: Any) -> str:
    if state == Delivery.ACCEPTED:
        return "completed"
    if state == Delivery.REJECTED:
        return "suspended"
    if state == Delivery.MODIFIED and remote.failed:
        return "abandoned"
    return "released"


def _settled(source: Queue, entry: Entry, token: uuid.UUID, how: str) -> bool:
    if entry.token != token:
        return False
    if how == "completed":
        source.remove(entry)
    elif how == "suspended":
        source.bury(entry)
    else:
        source.give_back(entry, counts=how == "abandoned")
    return True


def _requested(  # noqa: PLR0911 - an answer for each kind of request
    operation: str, source: Queue | None, body: Any
) -> tuple[int, str, str | None, Any]:
    if source is None:
        return 404, "The messaging entity could not be found.", "amqp:not-found", None
    if operation == "renew-lock":
        entries = [source.locked.get(token) for token in _elements(body["lock-tokens"])]
        if None in entries:
            return *LOST, None
        until = time.time() + source.settings.lock
        for entry in entries:
            entry.until = until  # type: ignore[union-attr]
        times = [timestamp(int(until * 1000))] * len(entries)
        expirations: Any = Array(*cast("Any", [UNDESCRIBED, Data.TIMESTAMP, *times]))
        return 200, "OK", None, {"expirations": expirations}
    if operation == "update-disposition":
        tokens = list(_elements(body["lock-tokens"]))
        found = [(token, source.locked.get(token)) for token in tokens]
        if any(
            entry is None or not _settled(source, entry, token, body["disposition-status"])
            for token, entry in found
        ):
            return *LOST, None
        return 200, "OK", None, None
    if operation == "renew-session-lock":
        ends = source.renew(body["session-id"])
        if ends is None:
            return 410, "The session lock has expired.", "com.microsoft:session-lock-lost", None
        return 200, "OK", None, {"expiration": timestamp(int(ends * 1000))}
    return 501, f"this stand-in does not know {operation}", "amqp:not-implemented", None


def _elements(array: Any) -> Iterable[Any]:
    return cast("Iterable[Any]", array.elements if isinstance(array, Array) else array)
