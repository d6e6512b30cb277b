"""A stand-in for Google's Pub/Sub service, for tests: `python -m things_kit.testing.servers.pubsub_service PORT`.

It follows the service's documentation where a client can tell: names and limits are checked, messages of one ordering
key come in order and to one subscriber at a time, one that is given back brings those behind it with it, deadlines end,
streams keep to their flow control, and subscriptions with exactly-once delivery answer for each acknowledgement.
What it has is in a journal, so it survives being killed. It takes shorter ack deadlines than the service (1 second
instead of 10), so that tests can outwait them. SIGUSR1 has it break all connections.

A topic or subscription with the label `fault` answers with that status code (`fault: resource_exhausted`);
`fault: transient_ack` refuses each acknowledgement of an exactly-once subscription once, for now.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import re
import signal
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Final

import grpc
import msgspec
from google.protobuf import any_pb2, empty_pb2
from google.pubsub_v1 import types
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

Proto = Any
"""A message of protocol buffers: its classes are made at run time."""

NAME: Final = re.compile(r"projects/[^/]+/(topics|subscriptions)/(?!goog)[A-Za-z][\w.~+%-]{2,254}", re.ASCII)
DELETED: Final = "_deleted-topic_"
DAY: Final = 86_400
PULL: Final = 0.2
"""Seconds that a pull waits for a first message; how many the service waits it does not say."""

INVALID: Final = "PERMANENT_FAILURE_INVALID_ACK_ID"
TRANSIENT: Final = "TRANSIENT_FAILURE_UNORDERED_ACK_ID"

Code: Final = grpc.StatusCode


class Refusal(Exception):
    """Ends a call with a status."""

    def __init__(self, code: grpc.StatusCode, text: str, failures: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.code, self.text, self.failures = code, text, failures


class Entry:
    """A message that a subscription has not acknowledged. While it is out, `ack_id` says as what and `taker` with whom."""

    __slots__ = ("ack_id", "attempt", "deadline", "lane", "message", "number", "taker", "trusted")

    def __init__(self, number: int, message: Proto, lane: "Lane | None") -> None:
        self.number, self.message, self.lane = number, message, lane
        self.attempt, self.ack_id, self.deadline = 0, "", 0.0
        self.taker: Taker | None = None
        self.trusted = True


class Lane:
    """The messages of one ordering key, in order; the first `out` of them are with a subscriber."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.queued = False

    @property
    def out(self) -> int:
        """How many are with a subscriber."""
        return sum(entry.taker is not None for entry in self.entries)


class Taker:
    """A stream or a pull: takes up to `capacity` messages at once."""

    def __init__(self, capacity: int, deadline: int) -> None:
        self.capacity, self.deadline = capacity, deadline
        self.taken: list[Proto] = []
        self.holding = 0
        self.woken = asyncio.Event()

    def take(self) -> list[Proto]:
        """What has come for it."""
        taken, self.taken = self.taken, []
        self.woken.clear()
        return taken


class Subscribed:
    """One subscription."""

    def __init__(self, settings: Proto) -> None:
        self.settings = settings
        self.takers: list[Taker] = []
        self.lanes: dict[str, Lane] = {}
        self.ready: deque[Entry | Lane] = deque()
        self.entries: dict[int, Entry] = {}
        self.by_ack_id: dict[str, Entry] = {}

    def add(self, number: int, message: Proto) -> None:
        """A message was published."""
        key = message.ordering_key if self.settings.enable_message_ordering else ""
        lane = self.lanes.setdefault(key, Lane()) if key else None
        entry = self.entries[number] = Entry(number, message, lane)
        if lane is None:
            self.ready.append(entry)
        else:
            lane.entries.append(entry)
            self._queue(lane)

    def _queue(self, lane: Lane) -> None:
        if not lane.queued:
            lane.queued = True
            self.ready.append(lane)

    def deliver(self) -> None:
        """Hand out what can be handed out."""
        waiting: list[Entry | Lane] = []
        while self.ready and (free := [taker for taker in self.takers if taker.holding < taker.capacity]):
            each = self.ready.popleft()
            if isinstance(each, Lane):
                each.queued = False
                if not self._deliver_lane(each, free):
                    waiting.append(each)
            elif each.number in self.entries and each.taker is None:
                self._hand(each, min(free, key=lambda taker: taker.holding))
        for each in waiting:
            if isinstance(each, Lane):
                self._queue(each)

    def _deliver_lane(self, lane: Lane, free: list[Taker]) -> bool:
        """False if it must wait for room with whom it is."""
        owner = next((entry.taker for entry in lane.entries if entry.taker is not None), None)
        taker = owner or min(free, key=lambda taker: taker.holding)
        for entry in lane.entries:
            if entry.taker is not None:
                continue
            if taker not in self.takers:
                return True  # who comes back for it when it is settled
            if taker.holding >= taker.capacity:
                return False
            self._hand(entry, taker)
        return True

    def _hand(self, entry: Entry, taker: Taker) -> None:
        entry.attempt += 1
        entry.ack_id = f"{self.settings.name.rpartition('/')[2]}:{entry.number}:{entry.attempt}"
        entry.taker = taker
        entry.deadline = time.monotonic() + (taker.deadline or self.settings.ack_deadline_seconds)
        self.by_ack_id[entry.ack_id] = entry
        taker.holding += 1
        counted = entry.attempt if self.settings.dead_letter_policy.dead_letter_topic else 0
        taker.taken.append(RECEIVED(ack_id=entry.ack_id, message=entry.message, delivery_attempt=counted))
        taker.woken.set()

    def _take_back(self, entry: Entry) -> None:
        if entry.taker is not None:
            entry.taker.holding -= 1
            entry.taker.woken.set()
            entry.taker = None

    def acknowledge(self, ack_ids: Iterable[str]) -> tuple[list[int], dict[str, str]]:
        """The numbers of what is done, and why others are not."""
        once, done, failures = self.settings.enable_exactly_once_delivery, [], {}
        transient = self.settings.labels.get("fault") == "transient_ack"
        for ack_id in ack_ids:
            entry = self.by_ack_id.get(ack_id)
            if entry is None or (once and entry.ack_id != ack_id):
                failures[ack_id] = INVALID
            elif once and transient and entry.trusted:
                entry.trusted = False
                failures[ack_id] = TRANSIENT
            else:
                self.drop(entry)
                done.append(entry.number)
        return done, failures if once else {}

    def drop(self, entry: Entry) -> None:
        """It is acknowledged."""
        self._take_back(entry)
        for attempt in range(1, entry.attempt + 1):
            self.by_ack_id.pop(f"{self.settings.name.rpartition('/')[2]}:{entry.number}:{attempt}", None)
        self.entries.pop(entry.number, None)
        lane = entry.lane
        if lane is not None and entry in lane.entries:
            lane.entries.remove(entry)
            if lane.entries:
                self._queue(lane)

    def modify(self, ack_ids: Iterable[str], seconds: int) -> dict[str, str]:
        """New deadlines, or back with them."""
        failures = {}
        for ack_id in ack_ids:
            entry = self.by_ack_id.get(ack_id)
            if entry is None or entry.taker is None or entry.ack_id != ack_id:
                failures[ack_id] = INVALID
            elif seconds:
                entry.deadline = time.monotonic() + seconds
            else:
                self._give_back(entry)
        return failures if self.settings.enable_exactly_once_delivery else {}

    def _give_back(self, entry: Entry) -> None:
        if entry.lane is None:
            self._take_back(entry)
            self.ready.appendleft(entry)
            return
        behind = entry.lane.entries[entry.lane.entries.index(entry) :]
        for each in behind:
            self._take_back(each)
        self._queue(entry.lane)

    def expire(self) -> None:
        """Take back what was not settled in time."""
        now = time.monotonic()
        for entry in [each for each in self.by_ack_id.values() if each.taker and each.deadline < now]:
            if entry.taker is not None:
                self._give_back(entry)


class Journal:
    """What has happened, so that a service that was killed goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def write(self, *entry: object) -> None:
        """Note one thing; a killed process has written what it had noted."""
        encoded = msgspec.msgpack.encode(entry)
        os.write(self._file, struct.pack(">I", len(encoded)) + encoded)

    def read(self) -> Iterable[list[Any]]:
        """All that was noted."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            while len(head := file.read(4)) == 4:
                yield msgspec.msgpack.decode(file.read(struct.unpack(">I", head)[0]))


class Service:
    """Topics and subscriptions, and the calls that concern them."""

    def __init__(self, journal: Journal) -> None:
        self.topics: dict[str, Proto] = {}
        self.subscriptions: dict[str, Subscribed] = {}
        self.retained: dict[str, list[tuple[int, Proto]]] = {}
        self.numbers = itertools.count(1)
        self._journal = journal
        for what, name, content in list(journal.read()):
            self._replay(what, name, content)

    def _replay(self, what: str, name: str, content: Any) -> None:
        if what == "topic":
            self._add_topic(TOPIC.FromString(content))
        elif what == "remove topic":
            self._remove_topic(name)
        elif what == "subscription":
            self._add_subscription(SUBSCRIPTION.FromString(content))
        elif what == "remove subscription":
            self.subscriptions.pop(name, None)
        elif what == "publish":
            self._publish(name, [MESSAGE.FromString(each) for each in content])
        elif what == "done":
            for number in content:
                if (entry := self.subscriptions[name].entries.get(number)) is not None:
                    self.subscriptions[name].drop(entry)
        elif what == "seek":
            self._seek(name, content)

    def _add_topic(self, settings: Proto) -> None:
        self.topics[settings.name] = settings

    def _remove_topic(self, name: str) -> None:
        del self.topics[name]
        self.retained.pop(name, None)
        for subscribed in self.subscriptions.values():
            if subscribed.settings.topic == name:
                subscribed.settings.topic = DELETED

    def _add_subscription(self, settings: Proto) -> None:
        known = self.subscriptions.get(settings.name)
        if known is None:
            self.subscriptions[settings.name] = Subscribed(settings)
        else:
            known.settings = settings

    def _publish(self, topic: str, messages: list[Proto]) -> list[str]:
        subscribed = [each for each in self.subscriptions.values() if each.settings.topic == topic]
        retains = self.topics[topic].message_retention_duration.seconds > 0
        for message in messages:
            number = next(self.numbers)
            message.message_id = str(number)
            for each in subscribed:
                each.add(number, message)
            if retains:
                self.retained.setdefault(topic, []).append((number, message))
        return [message.message_id for message in messages]

    def _seek(self, name: str, since: float) -> None:
        subscribed = self.subscriptions[name]
        for number, message in self.retained.get(subscribed.settings.topic, ()):
            published = message.publish_time.ToNanoseconds() / 1e9
            entry = subscribed.entries.get(number)
            if published < since and entry is not None:
                subscribed.drop(entry)
            elif published >= since and entry is None:
                subscribed.add(number, message)

    # --- topics

    async def create_topic(self, request: Proto) -> Proto:
        """As the service's CreateTopic."""
        _check_name(request.name)
        if request.name in self.topics:
            raise Refusal(Code.ALREADY_EXISTS, "Topic already exists")
        self._journal.write("topic", request.name, request.SerializeToString())
        self._add_topic(request)
        return request

    async def update_topic(self, request: Proto) -> Proto:
        """As the service's UpdateTopic."""
        topic = self._topic(request.topic.name)
        _update(topic, request.topic, request.update_mask.paths)
        self._journal.write("topic", topic.name, topic.SerializeToString())
        return topic

    async def get_topic(self, request: Proto) -> Proto:
        """As the service's GetTopic."""
        return self._topic(request.topic)

    async def list_topics(self, request: Proto) -> Proto:
        """As the service's ListTopics, in one page."""
        inside = [topic for name, topic in self.topics.items() if name.startswith(f"{request.project}/")]
        return TOPICS(topics=inside)

    async def list_topic_subscriptions(self, request: Proto) -> Proto:
        """As the service's ListTopicSubscriptions, in one page."""
        self._topic(request.topic)
        names = [name for name, each in self.subscriptions.items() if each.settings.topic == request.topic]
        return TOPIC_SUBSCRIPTIONS(subscriptions=names)

    async def delete_topic(self, request: Proto) -> Proto:
        """As the service's DeleteTopic."""
        self._topic(request.topic)
        self._journal.write("remove topic", request.topic, None)
        self._remove_topic(request.topic)
        return empty_pb2.Empty()

    async def publish(self, request: Proto) -> Proto:
        """As the service's Publish."""
        topic = self._topic(request.topic)
        _obey_fault(topic)
        if not 1 <= len(request.messages) <= 1000:
            raise Refusal(Code.INVALID_ARGUMENT, "The value for message_count is too large.")
        if request.ByteSize() > 10_000_000:
            raise Refusal(Code.INVALID_ARGUMENT, "Request payload size exceeds the limit: 10000000 bytes.")
        if len({message.ordering_key for message in request.messages}) > 1:
            raise Refusal(Code.FAILED_PRECONDITION, "All messages must have the same ordering key, or none.")
        refused = topic.labels.get("schema", "\0").encode()
        for message in request.messages:
            _check_message(message)
            if message.data == refused:
                raise Refusal(Code.INVALID_ARGUMENT, "Request contains an invalid argument: schema.")
        messages = list(request.messages)
        for message in messages:
            message.publish_time.GetCurrentTime()
        written = [message.SerializeToString() for message in messages]
        self._journal.write("publish", request.topic, written)
        ids = self._publish(request.topic, messages)
        for subscribed in self.subscriptions.values():
            if subscribed.settings.topic == request.topic:
                subscribed.deliver()
        return PUBLISHED(message_ids=ids)

    def _topic(self, name: str) -> Proto:
        topic = self.topics.get(name)
        if topic is None:
            _check_name(name)
            raise Refusal(Code.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")
        return topic

    # --- subscriptions

    async def create_subscription(self, request: Proto) -> Proto:
        """As the service's CreateSubscription."""
        _check_name(request.name)
        if request.name in self.subscriptions:
            raise Refusal(Code.ALREADY_EXISTS, "Subscription already exists")
        self._topic(request.topic)
        _check_settings(request)
        request.ack_deadline_seconds = request.ack_deadline_seconds or 10
        if not request.HasField("message_retention_duration"):
            request.message_retention_duration.seconds = 7 * DAY
        if not request.HasField("expiration_policy"):
            request.expiration_policy.ttl.seconds = 31 * DAY
        request.state = types.Subscription.State.ACTIVE
        self._journal.write("subscription", request.name, request.SerializeToString())
        self._add_subscription(request)
        return request

    async def get_subscription(self, request: Proto) -> Proto:
        """As the service's GetSubscription."""
        return self._subscription(request.subscription).settings

    async def update_subscription(self, request: Proto) -> Proto:
        """As the service's UpdateSubscription."""
        settings = self._subscription(request.subscription.name).settings
        if "enable_message_ordering" in request.update_mask.paths:
            raise Refusal(Code.INVALID_ARGUMENT, "Message ordering cannot be changed.")
        _update(settings, request.subscription, request.update_mask.paths)
        self._journal.write("subscription", settings.name, settings.SerializeToString())
        return settings

    async def delete_subscription(self, request: Proto) -> Proto:
        """As the service's DeleteSubscription."""
        subscribed = self._subscription(request.subscription)
        self._journal.write("remove subscription", request.subscription, None)
        del self.subscriptions[request.subscription]
        for taker in subscribed.takers:
            taker.woken.set()
        return empty_pb2.Empty()

    async def seek(self, request: Proto) -> Proto:
        """As the service's Seek, to a time."""
        subscribed = self._subscription(request.subscription)
        since = request.time.ToNanoseconds() / 1e9
        self._journal.write("seek", request.subscription, since)
        self._seek(request.subscription, since)
        subscribed.deliver()
        return SOUGHT()

    async def acknowledge(self, request: Proto) -> Proto:
        """As the service's Acknowledge."""
        subscribed = self._settling(request)
        done, failures = subscribed.acknowledge(request.ack_ids)
        self._journal.write("done", request.subscription, done)
        subscribed.deliver()
        return _answer(failures)

    async def modify_ack_deadline(self, request: Proto) -> Proto:
        """As the service's ModifyAckDeadline."""
        subscribed = self._settling(request)
        if not 0 <= request.ack_deadline_seconds <= 600:
            raise Refusal(Code.INVALID_ARGUMENT, "The ack deadline must be from 0 to 600 seconds.")
        failures = subscribed.modify(request.ack_ids, request.ack_deadline_seconds)
        subscribed.deliver()
        return _answer(failures)

    def _settling(self, request: Proto) -> Subscribed:
        subscribed = self._subscription(request.subscription)
        _obey_fault(subscribed.settings)
        if not request.ack_ids or request.ByteSize() > 512 * 1024:
            raise Refusal(Code.INVALID_ARGUMENT, "Request payload size exceeds the limit: 524288 bytes.")
        return subscribed

    def _subscription(self, name: str) -> Subscribed:
        subscribed = self.subscriptions.get(name)
        if subscribed is None:
            raise Refusal(Code.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")
        return subscribed

    async def pull(self, request: Proto) -> Proto:
        """As the service's Pull."""
        subscribed = self._subscription(request.subscription)
        _obey_fault(subscribed.settings)
        taker = Taker(min(request.max_messages, 1000), 0)
        subscribed.takers.append(taker)
        try:
            subscribed.deliver()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PULL):
                    await taker.woken.wait()
        finally:
            subscribed.takers.remove(taker)
        return PULLED(received_messages=taker.take())

    async def streaming_pull(self, requests: AsyncIterator[Proto]) -> AsyncIterator[Proto]:
        """As the service's StreamingPull. Acknowledgements come by calls of their own."""
        first = await anext(requests)
        name = first.subscription
        subscribed = self._subscription(name)
        _obey_fault(subscribed.settings)
        if subscribed.settings.push_config.push_endpoint:
            raise Refusal(Code.FAILED_PRECONDITION, "Subscription is configured for push.")
        if not 1 <= first.stream_ack_deadline_seconds <= 600:
            raise Refusal(Code.INVALID_ARGUMENT, "The ack deadline must be from 10 to 600 seconds.")
        taker = Taker(first.max_outstanding_messages or 1000, first.stream_ack_deadline_seconds)
        subscribed.takers.append(taker)
        ended = asyncio.create_task(_end(requests, taker))
        try:
            subscribed.deliver()
            while self.subscriptions.get(name) is subscribed:
                if taken := taker.take():
                    yield STREAMED(received_messages=taken)
                elif ended.done():
                    return
                else:
                    await taker.woken.wait()
            raise Refusal(Code.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")
        finally:
            subscribed.takers.remove(taker)
            ended.cancel()
            subscribed.deliver()


async def _end(requests: AsyncIterator[Proto], taker: Taker) -> None:
    async for _ in requests:
        pass
    taker.capacity = 0
    taker.woken.set()


def _answer(failures: dict[str, str]) -> Proto:
    if failures:
        raise Refusal(Code.FAILED_PRECONDITION, "Some acknowledgement ids were invalid.", failures)
    return empty_pb2.Empty()


def _obey_fault(resource: Proto) -> None:
    fault = resource.labels.get("fault", "").upper()
    if fault in Code.__members__:
        raise Refusal(Code[fault], "as the test wanted")


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise Refusal(Code.INVALID_ARGUMENT, f"Invalid resource name given (name={name}).")


def _check_message(message: Proto) -> None:
    if not message.data and not message.attributes:
        raise Refusal(Code.INVALID_ARGUMENT, "Some messages in the Publish request are empty.")
    if len(message.attributes) > 100 or len(message.ordering_key.encode()) > 1024:
        raise Refusal(Code.INVALID_ARGUMENT, "Too many attributes, or the ordering key is too long.")
    for name, value in message.attributes.items():
        size = len(name.encode())
        if not 0 < size <= 256 or len(value.encode()) > 1024 or name.lower().startswith("goog"):
            raise Refusal(Code.INVALID_ARGUMENT, "An attribute is malformed or too long.")


def _check_settings(settings: Proto) -> None:
    deadline, ttl = settings.ack_deadline_seconds, settings.expiration_policy.ttl.seconds
    retention = settings.message_retention_duration.seconds
    if deadline and not 10 <= deadline <= 600:
        raise Refusal(Code.INVALID_ARGUMENT, "Invalid ack deadline given.")
    if settings.HasField("message_retention_duration") and not 600 <= retention <= 31 * DAY:
        raise Refusal(Code.INVALID_ARGUMENT, "Invalid message retention duration given.")
    if settings.expiration_policy.HasField("ttl") and ttl < DAY:
        raise Refusal(Code.INVALID_ARGUMENT, "The expiration TTL must be at least one day.")


def _update(target: Proto, source: Proto, paths: Iterable[str]) -> None:
    for path in paths:
        if path == "labels":
            target.labels.clear()
            target.labels.update(source.labels)
        elif hasattr(field := getattr(source, path), "CopyFrom"):
            getattr(target, path).CopyFrom(field)
        else:
            setattr(target, path, field)


def _proto(name: str) -> Any:
    return getattr(types, name).pb()


TOPIC, SUBSCRIPTION, MESSAGE = _proto("Topic"), _proto("Subscription"), _proto("PubsubMessage")
TOPICS, TOPIC_SUBSCRIPTIONS = _proto("ListTopicsResponse"), _proto("ListTopicSubscriptionsResponse")
RECEIVED, STREAMED = _proto("ReceivedMessage"), _proto("StreamingPullResponse")
PUBLISHED, PULLED, SOUGHT = _proto("PublishResponse"), _proto("PullResponse"), _proto("SeekResponse")

CALLS: Final = {
    "Publisher": {
        "CreateTopic": "Topic", "UpdateTopic": "UpdateTopicRequest", "GetTopic": "GetTopicRequest",
        "ListTopics": "ListTopicsRequest", "ListTopicSubscriptions": "ListTopicSubscriptionsRequest",
        "DeleteTopic": "DeleteTopicRequest", "Publish": "PublishRequest",
    },
    "Subscriber": {
        "CreateSubscription": "Subscription", "GetSubscription": "GetSubscriptionRequest",
        "UpdateSubscription": "UpdateSubscriptionRequest", "DeleteSubscription": "DeleteSubscriptionRequest",
        "Pull": "PullRequest", "Acknowledge": "AcknowledgeRequest", "Seek": "SeekRequest",
        "ModifyAckDeadline": "ModifyAckDeadlineRequest", "StreamingPull": "StreamingPullRequest",
    },
}  # fmt: skip
"""The calls of each service, with the types of their requests."""


class Door:
    """Where calls come in: checks who calls, and answers with a status what was refused."""

    def __init__(self, service: Service, login: str | None) -> None:
        self._service, self._login = service, login

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a server serves."""
        return [
            grpc.method_handlers_generic_handler(
                f"google.pubsub.v1.{group}", {name: self._handler(name, kind) for name, kind in calls.items()}
            )
            for group, calls in CALLS.items()
        ]

    def _handler(self, name: str, kind: str) -> Any:
        method = getattr(self._service, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())
        made: Callable[..., Any] = grpc.unary_unary_rpc_method_handler
        behaviour = self._unary(method)
        if name == "StreamingPull":
            made, behaviour = grpc.stream_stream_rpc_method_handler, self._stream(method)
        return made(behaviour, _proto(kind).FromString, lambda answer: answer.SerializeToString())

    def _unary(self, method: Callable[[Proto], Any]) -> Any:
        async def call(request: Proto, context: Any) -> Any:
            try:
                self._check_login(context)
                return await method(request)
            except Refusal as refusal:
                await _abort(context, refusal)

        return call

    def _stream(self, method: Callable[[AsyncIterator[Proto]], AsyncIterator[Proto]]) -> Any:
        async def call(requests: AsyncIterator[Proto], context: Any) -> AsyncIterator[Proto]:
            try:
                self._check_login(context)
                async with contextlib.aclosing(method(requests)) as answers:  # type: ignore[type-var]
                    async for answer in answers:
                        yield answer
            except Refusal as refusal:
                await _abort(context, refusal)

        return call

    def _check_login(self, context: Any) -> None:
        if self._login is not None:
            given = dict(context.invocation_metadata()).get("authorization", "")
            head = given.removeprefix("Bearer ").partition(".")[0]
            if self._login not in _decoded(head):
                raise Refusal(Code.UNAUTHENTICATED, "Request had invalid authentication credentials.")


def _decoded(text: str) -> str:
    import base64  # noqa: PLC0415 - only where logins are asked for

    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode(errors="replace")


async def _abort(context: Any, refusal: Refusal) -> None:
    if refusal.failures is None:
        await context.abort(refusal.code, refusal.text)
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="ACK", metadata=refusal.failures))
    code = code_pb2.Code.Value(refusal.code.name)
    status = status_pb2.Status(code=code, message=refusal.text, details=[detail])
    await context.abort_with_status(rpc_status.to_status(status))


async def serve(options: argparse.Namespace) -> None:
    """Serve until killed; all connections are broken at SIGUSR1."""
    service = Service(Journal(options.journal))
    cut = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, cut.set)
    ticking = asyncio.create_task(_tick(service))
    while not ticking.done():
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(tuple(Door(service, options.login).handlers()))
        address = f"127.0.0.1:{options.port}"
        if options.cert:
            pair = (options.key.read_bytes(), options.cert.read_bytes())
            server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            server.add_insecure_port(address)
        await server.start()
        await cut.wait()
        cut.clear()
        await server.stop(None)


async def _tick(service: Service) -> None:
    while True:
        await asyncio.sleep(0.05)
        for subscribed in list(service.subscriptions.values()):
            subscribed.expire()
            subscribed.deliver()


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--login", help="the id of the key that callers must have signed with")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
