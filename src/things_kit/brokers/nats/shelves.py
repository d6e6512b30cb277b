"""The streams that keep messages for later: which can, what is changed in them for that, and what they have."""

from collections.abc import Sequence
from typing import Final

import msgspec

from things_kit.brokers.nats.admin import SECOND, Info, Streams, filters_of, takes
from things_kit.brokers.nats.errors import NO_SUCH_MESSAGE, STREAM_NOT_FOUND
from things_kit.brokers.nats.options import later_subjects
from things_kit.messaging.errors import ConfigError, UnsupportedError

SINCE: Final = (2, 12, 0)
"""The first server whose streams do."""


class Shelf(msgspec.Struct, frozen=True):
    """A stream that keeps messages for later, and for how many seconds; 0: for ever."""

    stream: str
    max_age: float


class Shelves:
    """Every method raises ConnectionLost, and ConfigError for what is refused."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def of(self, topic: str, *, change: bool) -> Shelf | None:
        """The stream of a topic, which keeps them from now on at the latest; None if there is none.

        Raises UnsupportedError for one that would lose them.
        """
        name = await self._streams.find(topic)
        info = None if name is None else await self._streams.stream(name)
        if name is None or info is None:
            return None
        config, own = info["config"], later_subjects(name)
        shelf = Shelf(name, config.get("max_age", 0) / SECOND)
        subjects: Sequence[str] = config.get("subjects") or ()
        taken = any(takes(subject.split("."), own.split(".")) for subject in subjects)
        if config.get("allow_msg_schedules") and taken:
            return shelf
        if trouble := _loses(config) or await self._unfiltered(name):
            raise UnsupportedError(
                f"the stream {name!r} of {topic!r} cannot keep messages for later: {trouble}"
            )
        if not change:
            raise ConfigError(
                f"the stream {name!r} of {topic!r} keeps no messages for later, and the URL says declare=false: "
                f"give it allow_msg_schedules and the subject {own!r}"
            )
        wanted = {**config, "subjects": [*subjects, *([] if taken else [own])], "allow_msg_schedules": True}
        await self._streams.ask(f"having {name!r} keep messages for later", f"STREAM.UPDATE.{name}", **wanted)
        return shelf

    async def _unfiltered(self, name: str) -> str | None:
        for each in await self._streams.consumers(name):
            if not filters_of(each["config"]):
                return f"its consumer {each['name']!r} has no filter, and would get them at once"
        return None

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        """The subjects of a stream's messages that match a pattern."""
        found: dict[str, int] = {}
        while True:
            page = await self._streams.ask(
                f"asking for {stream!r}",
                f"STREAM.INFO.{stream}",
                fine=(STREAM_NOT_FOUND,),
                subjects_filter=pattern,
                offset=len(found),
            )
            more = ((page or {}).get("state") or {}).get("subjects") or {}
            found |= more
            if not more or len(found) >= (page or {}).get("total", 0):
                return list(found)

    async def delete(self, stream: str, seq: int) -> bool:
        """Whether the message was there until now."""
        doing, where = f"deleting a message of {stream!r}", f"STREAM.MSG.DELETE.{stream}"
        return await self._streams.ask(doing, where, fine=NO_SUCH_MESSAGE, seq=seq, no_erase=True) is not None


def _loses(config: Info) -> str | None:
    """Why messages for later would not stay in a stream; None if they do."""
    faults = (
        (config.get("mirror") or config.get("sources"), "it is filled from others"),
        (
            config.get("retention") == "interest",
            "its retention is 'interest', which keeps what has consumers",
        ),
        (config.get("discard") == "new", "its discard is 'new', which the server refuses there"),
        (config.get("sealed"), "it is sealed"),
    )
    return next((said for wrong, said in faults if wrong), None)
