"""One connection to a server: opened once, lost once. The driver opens another; nothing is buffered in between."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, ClassVar, Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as Inbox
from nats.errors import Error, NoServersError

from things_kit.brokers.nats.errors import ERRORS, OPENING, NoResponders, answer
from things_kit.brokers.nats.options import PORT, Settings
from things_kit.engine.addresses import address
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.errors import OURS
from things_kit.engine.reasons import why_unreachable
from things_kit.messaging.errors import ConfigError, PublishError

log = logging.getLogger("things_kit.nats")

ANSWER: Final = 4.0
"""Seconds that the server may take to answer: it is alive, but does it work? Below the 5 that a stop may take in all."""

GOODBYE: Final = 1.0
"""Seconds that closing may take before the socket is simply dropped."""

NOBODY: Final = "503"

Outgoing = tuple[str, bytes, dict[str, str] | None]
"""Subject, payload and headers of a message."""


MOST_KEPT: Final = 1000
"""Names of headers that are kept, as most messages have those of others."""


class _Client(Client):
    """nats-py's client, except for two private parts (of 2.16, which is why newer ones are tried before they are allowed).

    A message whose headers it cannot read would end its reading for ever. And it looks at each character of each name of
    each message, where most have been seen before.
    """

    _said = False
    _names: ClassVar[dict[bytes, str | None]] = {}

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        found: dict[str, str] = {}
        names = _Client._names
        for line in raw.split(b"\r\n"):
            written, colon, value = line.partition(b":")
            if not colon:
                continue
            name = names[written] if written in names else _Client._noted(written)
            if name is not None:
                found[name] = value.strip().decode("utf-8", "replace")
        return found

    @staticmethod
    def _noted(written: bytes) -> str | None:
        """A name as text; None for what is none, and is left out with its value."""
        name: str | None = written.strip().decode("ascii", "replace")
        if name and (not name.isascii() or any(letter.isspace() for letter in name)):
            name = None
        if len(_Client._names) < MOST_KEPT:
            _Client._names[written] = name
        return name

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (ValueError, LookupError) as error:
            level = logging.DEBUG if self._said else logging.WARNING
            log.log(
                level, "a message has headers that are none of NATS, and is taken without them: %s", error
            )
            self._said = True
            return None


class Answers:
    """So many messages on their way, and what came back for each: in any order, or never."""

    def __init__(self, token: str, outgoing: Sequence[Outgoing]) -> None:
        self.token = token
        self.outgoing = outgoing
        self.arrived: list[Msg | Exception | None] = [None] * len(outgoing)
        self.missing = len(outgoing)
        self.progress = asyncio.Event()

    def put(self, index: int, came: Msg | Exception) -> None:
        """One is answered."""
        if index < len(self.arrived) and self.arrived[index] is None:
            self.arrived[index] = came
            self.missing -= 1
            self.progress.set()


class Connection:
    """A client of nats-py that does not reconnect, and one inbox for all answers.

    By itself nats-py would send what it had buffered, and ask again as whoever it was, behind our back. And its own
    `flush` and `request` must not be cancelled: a late answer to a cancelled flush ends its reading for ever.
    """

    def __init__(self, settings: Settings, server: str) -> None:
        self.server = server
        self.lost: ConnectionLost | None = None
        self._settings = settings
        self._client = _Client()
        self._watchers: set[Callable[[], None]] = set()
        self._numbers = count()
        self._waiting: dict[str, Answers] = {}
        self._inbox = ""

    # --- open and close

    async def open(self) -> None:
        """Connect and log in. Raises ConnectionLost, ConfigError."""
        settings, client, options = self._settings, self._client, self._options()
        try:
            await client.connect(f"nats://{self.server}", **options)
            if not client.is_connected:
                raise ConnectionLost(f"{self.server} hung up")
            self._check_encryption()
            self._inbox = client.new_inbox()
            await client.subscribe(f"{self._inbox}.*", cb=self._hear, pending_bytes_limit=0)
        except BaseException as error:
            await self._end()
            if not isinstance(error, Exception) or isinstance(error, OURS):
                raise
            if settings.options.credentials and not isinstance(error, OSError | Error):
                raise ConfigError(
                    f"{settings.url.display}: the file of credentials cannot be used"
                ) from error
            # nats-py hides why it found no server
            why = (
                await why_unreachable(address(self.server, PORT))
                if isinstance(error, NoServersError)
                else None
            )
            if why is not None:
                raise ConnectionLost(f"it cannot be reached: {why}") from error
            raise OPENING.translate(error, f"connecting to {self.server}") from error

    def _options(self) -> dict[str, Any]:
        url, settings = self._settings.url, self._settings
        login: dict[str, Any] = {}
        if url.password is not None or url.username is not None:
            given = {"user": url.username or "", "password": url.password}
            if url.password is None:
                given = {"token": url.username}
            # Asked for only when it has to be said: never to a server that speaks no TLS where TLS was asked for
            login = {name: (lambda text=text: self._said_safely(text)) for name, text in given.items()}
        return {
            **login,
            "name": "things-kit",
            "allow_reconnect": False,
            "pending_size": 0,  # nothing is buffered while there is no connection, and writing never waits
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": max(0.5, min(2.0, url.engine.publish_timeout)),
            "ping_interval": 30,
            "error_cb": self._on_error,
            "closed_cb": self._on_closed,
            "tls": settings.tls(),
            **settings.credentials(),
        }

    def _said_safely(self, text: str) -> str:
        self._check_encryption()
        return text

    def _check_encryption(self) -> None:
        # nats-py speaks TLS only where the server asks for it, whatever the scheme says
        if self._settings.encrypted and not self._client._server_info.get("tls_required"):  # noqa: SLF001 - no other way to know
            raise ConfigError(
                f"{self._settings.url.display}: {self.server} speaks no TLS; if that is meant to be, write nats://"
            )

    async def close(self) -> None:
        """Hang up. What waits for an answer gets ConnectionLost."""
        self._lose(ConnectionLost(f"the connection to {self.server} was closed"))
        await self._end()

    async def _end(self) -> None:
        try:
            async with asyncio.timeout(GOODBYE):
                await self._client.close()
        except (
            TimeoutError,
            OSError,
            Error,
            AssertionError,
            AttributeError,
        ):  # the last two, where it had not begun
            self._drop()

    def _drop(self) -> None:
        # A server that stands still takes nothing more, and closing politely would wait for it
        writer = getattr(self._client._transport, "_io_writer", None)  # noqa: SLF001 - nats-py has no such call
        if writer is not None:
            writer.transport.abort()

    def abandon(self, why: str) -> ConnectionLost:
        """It is of no use any more: the error to raise. The driver opens another, and closes this one."""
        lost = ConnectionLost(why)
        self._lose(lost)
        return lost

    def _lose(self, error: ConnectionLost) -> None:
        if self.lost is not None:
            return
        self.lost = error
        for answers in self._waiting.values():
            answers.progress.set()
        for watcher in list(self._watchers):
            watcher()

    async def _on_closed(self) -> None:
        said = self._client.last_error
        self._lose(ConnectionLost(f"{self.server} hung up{f': {said}' if said else ''}"))

    async def _on_error(self, error: Exception) -> None:
        """What nats-py would log. A refused subject is nobody's answer, so it is looked for among the questions."""
        text = str(error)
        log.debug("%s: %s", self.server, text)
        if "permissions violation" in text.lower():
            self._not_permitted(text)

    def _not_permitted(self, text: str) -> None:
        for answers in list(self._waiting.values()):
            for index, (subject, _, _) in enumerate(answers.outgoing):
                if f'"{subject.lower()}"' in text.lower():
                    answers.put(index, PublishError(f"this user may not publish to {subject!r}: {text}"))

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Have this called when the connection is lost; returns what ends that."""
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    @property
    def alive(self) -> bool:
        """Whether it can be used."""
        return self.lost is None and self._client.is_connected

    def check(self) -> None:
        """Raises ConnectionLost if it is."""
        if self.lost is None and not self._client.is_connected:
            self._lose(ConnectionLost(f"the connection to {self.server} is gone"))
        if self.lost is not None:
            raise ConnectionLost(str(self.lost)) from self.lost

    # --- what the server said of itself

    @property
    def version(self) -> str:
        """The server's version, such as 2.9.10."""
        return ".".join(map(str, self.release))

    @property
    def release(self) -> tuple[int, int, int]:
        """The same, to be compared."""
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    @property
    def max_payload(self) -> int:
        """The largest message, headers included."""
        return self._client.max_payload

    # --- asking

    async def ask(self, subject: str, /, **question: Any) -> dict[str, Any]:
        """What JetStream's API says. Raises ConnectionLost, Refused, NoResponders, ConfigError."""
        [came] = await self.exchange([(f"{self._settings.api}.{subject}", encoded(question), None)])
        if isinstance(came, PublishError):
            raise ConfigError(str(came)) from came
        if isinstance(came, Exception):
            raise came
        return answer(came.data)

    async def exchange(self, outgoing: Sequence[Outgoing]) -> list[Msg | Exception]:
        """Send all of these, and wait for an answer to each; NoResponders where nobody is there to give one.

        Raises:
            ConnectionLost: The connection went, or the server was silent for ANSWER seconds.
        """
        return await self.answered(await self.begin(outgoing))

    async def begin(self, outgoing: Sequence[Outgoing]) -> Answers:
        """Send all of these. What is returned is for `answered`, or to be forgotten. Raises ConnectionLost."""
        answers = self._expect(outgoing)
        try:
            for index, (subject, payload, headers) in enumerate(outgoing):
                await self.tell(subject, payload, headers, f"{self._inbox}.{answers.token}-{index}")
        except BaseException:
            self.forget(answers)
            raise
        return answers

    async def answered(self, answers: Answers) -> list[Msg | Exception]:
        """Wait for an answer to each; see `exchange`."""
        try:
            await self._all(answers)
        finally:
            self.forget(answers)
        return answers.arrived  # type: ignore[return-value] # none is missing

    def _expect(self, outgoing: Sequence[Outgoing]) -> Answers:
        answers = Answers(f"{next(self._numbers)}", outgoing)
        self._waiting[answers.token] = answers
        return answers

    def forget(self, answers: Answers) -> None:
        """Nobody waits for these any more."""
        self._waiting.pop(answers.token, None)

    async def _all(self, answers: Answers) -> None:
        while answers.missing:
            self.check()
            answers.progress.clear()
            try:
                async with asyncio.timeout(ANSWER):
                    await answers.progress.wait()
            except TimeoutError:
                raise self.abandon(f"{self.server} did not answer within {ANSWER:g} s") from None

    async def tell(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, reply: str = ""
    ) -> None:
        """Send a message. Raises ConnectionLost."""
        self.check()
        try:
            await self._client.publish(subject, payload, reply, headers)
        except (Error, OSError) as error:
            raise ERRORS.translate(error, f"sending to {self.server}") from error

    async def _hear(self, msg: Msg) -> None:
        token, _, index = msg.subject.rpartition(".")[2].partition("-")
        answers = self._waiting.get(token)
        if answers is None or not index.isdigit():
            return
        nobody = not msg.data and msg.headers is not None and msg.headers.get("Status") == NOBODY
        answers.put(int(index), NoResponders() if nobody else msg)

    # --- receiving

    async def receive_by(self, accept: Callable[[Msg], Awaitable[None]]) -> tuple[str, Inbox]:
        """A subject of our own, and whoever is called with what arrives there."""
        self.check()
        subject = self._client.new_inbox()
        try:
            return subject, await self._client.subscribe(subject, cb=accept, pending_bytes_limit=0)
        except (Error, OSError) as error:
            raise ERRORS.translate(error, f"subscribing at {self.server}") from error

    async def stop_receiving(self, inbox: Inbox) -> None:
        """Take nothing more; returns when all that was on its way has arrived. Raises ConnectionLost."""
        self.check()
        # Not unsubscribe(): that drops what is on its way
        await self._client._send_unsubscribe(inbox._id)  # noqa: SLF001
        # Who sends to himself gets it behind all that was sent to him before
        answers = self._expect([("", b"", None)])
        try:
            await self.tell(f"{self._inbox}.{answers.token}-0", b"echo")
            await self._all(answers)
        finally:
            self.forget(answers)
        with contextlib.suppress(Error, OSError):
            await inbox.unsubscribe()


def encoded(question: dict[str, Any]) -> bytes:
    """A question as JetStream takes it; nothing at all for no question."""
    return msgspec.json.encode(question) if question else b""
