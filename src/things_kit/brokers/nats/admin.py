"""Topics and groups as JetStream has them: streams and their durable pull consumers."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from things_kit.brokers.nats.connection import Connection
from things_kit.brokers.nats.errors import (
    CONSUMER_NOT_FOUND,
    ERRORS,
    STREAM_NAME_IN_USE,
    STREAM_NOT_FOUND,
    NoResponders,
    Refused,
)
from things_kit.brokers.nats.options import NATSOptions, durable_names, escaped, later_subjects
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.errors import ErrorTable
from things_kit.engine.wait_topics import LEASE, is_wait_topic
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.policy import Start

log = logging.getLogger("things_kit.nats")

SECOND: Final = 1_000_000_000
"""JetStream counts in nanoseconds."""

IDLE: Final = 60.0
"""Seconds without a sign of life after which the group of a dead process vanishes, if it was only its own."""

Info = Mapping[str, Any]


LATER: Final = later_subjects("").partition(".")[0] + "."
"""How subjects begin on which streams keep messages for later."""

OURS: Final = "things-kit: "
"""How a consumer's description begins that is a group's; its name follows."""


class Place(msgspec.Struct, frozen=True):
    """Where a group stood: all before `seq` was acknowledged, in the stream that was created at that time."""

    created: str
    seq: int


class Group(msgspec.Struct, frozen=True):
    """A group as JetStream has it: a consumer of a stream, and what was last said of it."""

    stream: str
    name: str
    info: Info

    @property
    def config(self) -> Info:
        """Its settings."""
        found: Info = self.info["config"]
        return found


REST: Final = 0.5
"""Seconds for which a stream that was there, and is gone, is not made anew. A server of 2.9 forgets a stream before it
deletes its files, and would delete those of a new one of that name, with what it has confirmed."""


Missed: TypeAlias = dict[str, float | None]
"""When topics that had a stream were first seen without one; None where it is there."""


class Streams:
    """Asks JetStream through one connection. Every method raises ConnectionLost, and ConfigError for what is refused."""

    def __init__(
        self, connection: Connection, options: NATSOptions, missed: Missed, errors: ErrorTable = ERRORS
    ) -> None:
        self._connection = connection
        self._options = options
        self._missed = missed
        self._errors = errors

    async def ask(
        self, doing: str, where: str, /, *, fine: tuple[int, ...] = (), **question: Any
    ) -> Info | None:
        """The answer; None where the error is one of these."""
        try:
            return await self._connection.ask(where, **question)
        except (Refused, NoResponders) as error:
            if isinstance(error, Refused) and error.refusal.err_code in fine:
                return None
            raise self._errors.translate(error, doing) from error

    async def account(self) -> Info:
        """What the account has and may have."""
        return await self.ask("asking for JetStream", "INFO") or {}

    # --- streams

    async def find(self, topic: str) -> str | None:
        """The stream that takes this subject."""
        found = await self.ask(f"looking for {topic!r}", "STREAM.NAMES", subject=topic)
        names: Sequence[str] = (found or {}).get("streams") or ()
        return names[0] if names else None

    async def stream(self, name: str, topic: str | None = None) -> Info | None:
        """A stream's settings and state, with the count of this topic's messages; None if it is missing."""
        counted = {"subjects_filter": topic} if topic else {}
        return await self.ask(
            f"asking for {name!r}", f"STREAM.INFO.{name}", fine=(STREAM_NOT_FOUND,), **counted
        )

    async def topics(self) -> list[str]:
        """All subjects that streams take, and of those with wildcards what was published."""
        found: list[str] = []
        for stream in await self._all("asking for all streams", "STREAM.LIST", "streams"):
            subjects: Sequence[str] = _others(stream["config"])
            if any({"*", ">"} & set(subject.split(".")) for subject in subjects):
                info = await self.stream(stream["config"]["name"], ">") or {}
                there = info.get("state", {}).get("subjects") or ()
                subjects = [subject for subject in there if not subject.startswith(LATER)]
            found += subjects
        return found

    async def groups(self, topic: str) -> list[str]:
        """The groups of a topic, by the names that they were given here, else by those that they have."""
        stream = await self.find(topic)
        found = [] if stream is None else await self.consumers(stream)
        return [group_of(info) for info in found if concerns(info["config"], topic)]

    async def declare(self, topic: str) -> str:
        """The stream of a topic, created if there is none. Raises ConnectionLost if there was one a moment ago."""
        found = await self.find(topic)
        if found is None:
            self._check_rest(topic)
            shared = None if is_wait_topic(topic) else self._options.stream
            wanted = shared or escaped(topic)
            if shared and (there := await self.stream(wanted)):
                await self._widen(wanted, there, topic)
            else:
                await self._create(wanted, topic)
            found = wanted
        self._missed[topic] = None
        return found

    def _check_rest(self, topic: str) -> None:
        if topic in self._missed:
            now = asyncio.get_running_loop().time()
            missed = self._missed[topic] = self._missed[topic] or now
            if now - missed < REST:
                raise ConnectionLost(f"the stream of {topic!r} was deleted a moment ago")

    async def _create(self, name: str, topic: str) -> None:
        options = self._options
        config = {
            "name": name,
            "subjects": [topic],
            "retention": "limits",
            "storage": options.storage,
            "num_replicas": options.replicas,
            "max_age": int(options.max_age * SECOND),
            "max_bytes": options.max_bytes,
            "discard": options.discard,
            "duplicate_window": int(options.duplicate_window * SECOND),
        }
        if is_wait_topic(topic):  # what was carried on goes, and nothing else does
            config |= {"retention": "workqueue", "max_age": 0, "max_bytes": -1}
        made = await self.ask(
            f"declaring {topic!r}", f"STREAM.CREATE.{name}", fine=(STREAM_NAME_IN_USE,), **config
        )
        if made is None and await self.find(topic) != name:  # else somebody else was faster
            raise ConfigError(
                f"declaring {topic!r}: there is a stream {name!r} of other subjects; "
                f"add the subject to it, or name another stream (?stream=...)"
            )

    async def _widen(self, name: str, there: Info, topic: str) -> None:
        """Give an existing stream one more subject, as the URL asks for."""
        config = {**there["config"], "subjects": [*there["config"].get("subjects", ()), topic]}
        await self.ask(f"adding {topic!r} to the stream {name!r}", f"STREAM.UPDATE.{name}", **config)

    async def remove(self, topic: str) -> str | None:
        """Delete a topic's stream, and return its name; of one with other subjects, only its messages and groups."""
        name = await self.find(topic)
        info = None if name is None else await self.stream(name)
        if name is None or info is None:
            return None
        doing = f"removing {topic!r}"
        if _others(info["config"]) == [topic]:
            await self.ask(doing, f"STREAM.DELETE.{name}", fine=(STREAM_NOT_FOUND,))
            self._missed.pop(topic, None)  # the server has said that this is done
            return name
        for consumer in await self.consumers(name):
            if consumer["config"].get("filter_subject") == topic:
                await self.ask(
                    doing, f"CONSUMER.DELETE.{name}.{consumer['name']}", fine=(CONSUMER_NOT_FOUND,)
                )
        for subject in (topic, later_subjects(name, topic)):
            await self.ask(doing, f"STREAM.PURGE.{name}", filter=subject)
        return None

    async def remove_group(self, topic: str, group: str) -> Group | None:
        """Delete one group of a topic, and return what it was; None if it is missing."""
        stream = await self.find(topic)
        found = None if stream is None else await self.group(stream, topic, group)
        if found is not None:
            await self.leave(found.stream, found.name)
        return found

    # --- groups

    async def consumers(self, stream: str) -> list[Info]:
        """All groups of a stream."""
        return await self._all("asking for groups", f"CONSUMER.LIST.{stream}", "consumers")

    async def _all(self, doing: str, where: str, what: str) -> list[Info]:
        """All pages of a list."""
        found: list[Info] = []
        while True:
            page = await self.ask(doing, where, offset=len(found)) or {}
            found += page.get(what) or ()
            if len(found) >= page.get("total", 0) or not page.get(what):
                return found

    async def consumer(self, stream: str, name: str) -> Info | None:
        """A consumer's settings and state; None if it is missing."""
        missing = (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND)
        return await self.ask(f"asking for {name!r}", f"CONSUMER.INFO.{stream}.{name}", fine=missing)

    async def group(self, stream: str, topic: str, group: str) -> Group | None:
        """The group of a topic; None if it is missing."""
        *others, own = durable_names(stream, topic, group)
        for name in others:
            info = await self.consumer(stream, name)
            if info is not None and concerns(info["config"], topic):
                return Group(stream, name, info)
        info = await self.consumer(stream, own)
        return None if info is None else Group(stream, own, info)

    async def join(
        self, topic: str, group: str, start: Start | Place, *, ephemeral: bool = False, create: bool = True
    ) -> Group:
        """The group of this topic's stream, both created if they are missing.

        Without `create` only an ephemeral group is. Raises ConfigError if something is missing then.
        """
        stream = await self.stream_of(topic, create=create)
        found = await self.group(stream, topic, group)
        if found is None and not (create or ephemeral):
            raise ConfigError(f"{topic!r} has no group {group!r}: declare it first")
        if found is None:
            begin = await self._begin(stream, topic, group, start)
            found = await self._found(stream, topic, group, begin, ephemeral)
        return await self._checked(found, topic, change=create or ephemeral)

    async def stream_of(self, topic: str, *, create: bool) -> str:
        """The stream of a topic. Raises ConfigError where it is missing and not to be created."""
        stream = await (self.declare(topic) if create else self.find(topic))
        if stream is None:
            raise ConfigError(f"there is no stream that takes {topic!r}: declare it first")
        return stream

    async def _begin(self, stream: str, topic: str, group: str, start: Start | Place) -> dict[str, Any]:
        """Where a group begins that is created now."""
        if isinstance(start, str):
            return {"deliver_policy": "all" if start == "earliest" else "new"}
        info = await self.stream(stream) or {}
        if info.get("created") != start.created:
            log.warning(
                "%s: its stream was lost at the server and is made anew; %s begins at its start", topic, group
            )
            return {"deliver_policy": "all"}
        log.warning(
            "%s: the group %s was deleted at the server; it is made anew at message %d",
            topic,
            group,
            start.seq,
        )
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": start.seq}

    async def _found(
        self, stream: str, topic: str, group: str, begin: dict[str, Any], ephemeral: bool
    ) -> Group:
        name = durable_names(stream, topic, group)[-1]
        config = {
            "durable_name": name,
            "description": f"{OURS}{group}"[:1000],
            "ack_policy": "explicit",
            "ack_wait": int(self._lease_of(topic) * SECOND),
            "max_ack_pending": -1,  # all processes of a group share it; each holds no more than its max_in_flight
            "filter_subject": topic,
            "replay_policy": "instant",
            **begin,
        }
        if ephemeral:
            config["inactive_threshold"] = int(max(IDLE, 4 * self._options.lease) * SECOND)
        made = await self._put(stream, name, config, "create")
        if made is None:  # somebody else was faster, and begins elsewhere
            made = await self.consumer(stream, name)
        if made is None:
            raise ConfigError(f"the stream {stream!r} of {topic!r} takes no group {group!r}")
        return Group(stream, name, made)

    async def _put(self, stream: str, name: str, config: Info, action: str) -> Info | None:
        exists = (10012, 10013, 10105, 10148)
        where = f"CONSUMER.DURABLE.CREATE.{stream}.{name}"
        doing = f"creating the consumer {name!r}"
        return await self.ask(doing, where, fine=exists, stream_name=stream, config=config, action=action)

    async def push(self, stream: str, topic: str, subject: str, start: int, heartbeat: float) -> str:
        """Have a topic's messages sent to a subject from a position on, for as long as somebody listens; the consumer's name."""
        config = {
            "deliver_subject": subject,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "ack_policy": "none",
            "filter_subject": topic,
            "replay_policy": "instant",
            "idle_heartbeat": int(heartbeat * SECOND),
            "flow_control": True,
            "mem_storage": True,
            "num_replicas": 1,
        }
        doing = f"reading {topic!r}"
        made = await self.ask(doing, f"CONSUMER.CREATE.{stream}", stream_name=stream, config=config)
        return str((made or {})["name"])

    async def _checked(self, found: Group, topic: str, *, change: bool) -> Group:
        """A group that we can receive as, with a lease no shorter than this URL's. Raises ConfigError for any other."""
        trouble = wrong_kind(found.config, topic)
        if trouble is None and not filters_of(found.config):
            there = await self.stream(found.stream) or {"config": {}}
            others = [each for each in there["config"].get("subjects", ()) if each != topic]
            trouble = f"receives {', '.join(others)} as well" if others else None
        if trouble:
            raise ConfigError(f"the consumer {found.name!r} of the stream {found.stream!r} {trouble}")
        return await self.leased(found, topic, change=change)

    def _lease_of(self, topic: str) -> float:
        """What waits is consumed by all processes, and has one lease, whatever their URLs say."""
        return LEASE if is_wait_topic(topic) else self._options.lease

    async def leased(self, found: Group, topic: str, *, change: bool) -> Group:
        """The group with this URL's lease of a topic, or a longer one: who extends more often than needed takes nothing from anybody.

        It becomes shorter only while nobody is at work: others extend as seldom as the longer one allows. Raises
        ConfigError if it is too short and stays so.
        """
        lease, there, info = self._lease_of(topic), lease_of(found.config), found.info
        idle = not (info["num_ack_pending"] or info["num_waiting"])
        if change and not found.config.get("backoff") and (there < lease or (there > lease and idle)):
            try:
                config = {**found.config, "ack_wait": int(lease * SECOND)}
                info = await self._put(found.stream, found.name, config, "update") or info
            except ConfigError as error:  # without the right to do so
                log.debug("the lease of %s stays %g s: %s", found.name, there, error)
        if lease_of(info["config"]) < lease:
            raise ConfigError(
                f"the consumer {found.name!r} of the stream {found.stream!r} hands messages out again after "
                f"{lease_of(info['config']):g} s, and that could not be changed: give the URL a lease no longer than that"
            )
        return Group(found.stream, found.name, info)

    async def leave(self, stream: str, name: str) -> None:
        """Delete a group's consumer."""
        fine = (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND)
        await self.ask(f"deleting {name!r}", f"CONSUMER.DELETE.{stream}.{name}", fine=fine)

    async def lag(self, topic: str, group: str) -> int:
        """What the group has not acknowledged; where it is missing, all that there is."""
        stream = await self.find(topic)
        if stream is None:
            return 0
        found = await self.group(stream, topic, group)
        if found is not None:
            return int(found.info["num_pending"]) + int(found.info["num_ack_pending"])
        there = await self.stream(stream, topic)
        return int(((there or {}).get("state", {}).get("subjects") or {}).get(topic, 0))


def group_of(info: Info) -> str:
    """A group's name, by its consumer."""
    description = info["config"].get("description") or ""
    ours = description.removeprefix(OURS)
    return str(ours if ours != description else info["name"])


def wrong_kind(config: Info, topic: str) -> str | None:
    """What about a consumer keeps us from receiving as it; None if nothing does."""
    acknowledged, most = config.get("ack_policy"), config.get("max_deliver", -1)
    filters = filters_of(config)
    faults = (
        (config.get("deliver_subject"), "is a push consumer; a group is a pull consumer"),
        (acknowledged != "explicit", f"has ack_policy {acknowledged!r}; a group needs 'explicit'"),
        (config.get("priority_groups"), "has priority groups; a group is a consumer without them"),
        (config.get("headers_only"), "hands messages out without their values (headers_only)"),
        (
            most > 0,
            f"gives a message up after {most} deliveries, without a dead letter; set max_deliver to -1",
        ),
        (filters and filters != [topic], f"receives {', '.join(filters)}, not {topic}"),
    )
    return next((said for wrong, said in faults if wrong), None)


def _others(config: Info) -> list[str]:
    """The subjects of a stream, but for those on which it keeps messages for later."""
    return [subject for subject in config.get("subjects") or () if not subject.startswith(LATER)]


def concerns(config: Info, topic: str) -> bool:
    """Whether a consumer receives this topic, and perhaps others."""
    filters = filters_of(config)
    return not filters or any(takes(subject.split("."), topic.split(".")) for subject in filters)


def takes(pattern: Sequence[str], subject: Sequence[str]) -> bool:
    """Whether a subject with wildcards, in words, matches all that another one does."""
    for index, word in enumerate(pattern):
        if index == len(subject) or word not in {"*", ">", subject[index]}:
            return False
        if word == ">":
            return True
    return len(pattern) == len(subject)


def lease_of(config: Info) -> float:
    """Seconds after which a consumer hands out again what was not acknowledged."""
    waits: Sequence[int] = config.get("backoff") or [config["ack_wait"]]
    return min(waits) / SECOND


def filters_of(config: Info) -> list[str]:
    """The subjects to which a consumer is restricted; none where it receives all of its stream."""
    return (
        [config["filter_subject"]]
        if config.get("filter_subject")
        else list(config.get("filter_subjects") or ())
    )
