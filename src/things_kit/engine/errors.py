"""From a client's exceptions to ours: one declarative table for each broker.

    ERRORS = ErrorTable(
        "stone",
        on(LoginError, raises=ConfigError, says="{doing}: it does not accept this login: {said}"),
        on(TOO_LARGE, raises=MessageTooLarge),                                # a code, as `code` finds it
        on(NO_TOPIC, raises=ConfigError, publishing=UnknownTopic),
        on(lambda error: error.retriable, StoneTimeout, raises=ConnectionLost),
        client=StoneError,
        code=lambda error: error.number,
    )

    with ERRORS.during("asking for the lag of 'orders'"):
        await client.lag("orders")

The first rule that fits counts. What no rule knows is an outage, never the end of an app that runs: it becomes
`ConnectionLost`, so the engine tries again, and is logged whole the first time. `OSError`, which includes the
interpreter's own `TimeoutError` and `ConnectionError`, and `EOFError` are outages that need no rule.
"""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.secrets import masked
from things_kit.messaging.errors import ConfigError, PublishError, ThingsKitError

AnswerT = TypeVar("AnswerT")

Failure: TypeAlias = Any
"""What a client raised, or the error that it handed over in an answer; clients have no common type for these."""

OURS: Final = (ThingsKitError, ConnectionLost, UnknownTopic)
"""What the engine understands: it passes through every table as it is."""

LONGEST: Final = 500
"""Characters of a client's sentence that are kept; some quote a whole page of HTML."""


def sentence(failure: Failure) -> str:
    """What a client has to say, on one line; some of its exceptions say nothing."""
    return " ".join(str(failure).split()) or type(failure).__name__


class Rule(NamedTuple):
    """What some failures mean; made by `on`."""

    when: tuple[object, ...]
    raises: type[Exception]
    publishing: type[Exception]
    says: str


def on(
    *when: type[BaseException] | Callable[[Failure], bool] | int | str,
    raises: type[Exception],
    publishing: type[Exception] | None = None,
    says: str = "{doing}: {said}",
    hint: str = "",
) -> Rule:
    """What a table says of some failures.

    Args:
        when: Types of exceptions, codes, and predicates; any of them is enough.
        raises: What they mean to the engine, or to the user.
        publishing: What they mean to a message that is published; what is a `ConfigError` otherwise refuses it.
        says: The sentence, with `{doing}` and `{said}`, which is what the client said.
        hint: What the user can do about it; in brackets behind the sentence.
    """
    if publishing is None:
        publishing = PublishError if issubclass(raises, ConfigError) else raises
    bracket = f" ({hint.replace('{', '{{').replace('}', '}}')})" if hint else ""
    return Rule(when, raises, publishing, says + bracket)


_OUTAGE: Final = on(OSError, EOFError, raises=ConnectionLost)
_UNKNOWN: Final = on(raises=ConnectionLost)


class ErrorTable:
    """What one client's failures mean.

    Args:
        broker: Whose they are; names the logger, `things_kit.BROKER`.
        rules: The first that fits counts.
        client: The types of what the client raises, or hands over in its answers. Codes, predicates and `said` are
            for these alone; for all else, which may be any exception, only rules that name its type count.
        code: The code of a failure, for rules that name codes.
        said: Its words, without secrets; `masked` goes over them as well.
        unwrap: The failure itself, for clients that raise an envelope of it, and anything else as it is. Rules see
            this one; the cause is what was raised.
    """

    def __init__(
        self,
        broker: str,
        *rules: Rule,
        client: type | tuple[type, ...],
        code: Callable[[Failure], Hashable] = lambda _: None,
        said: Callable[[Failure], str] = sentence,
        unwrap: Callable[[Failure], Failure] = lambda failure: failure,
    ) -> None:
        self._broker = broker
        self._rules = rules
        self._client = client
        self._code = code
        self._said = said
        self._unwrap = unwrap
        self._log = logging.getLogger(f"things_kit.{broker}")
        self._logged: set[tuple[type, Hashable]] = set()

    def preceded_by(self, *rules: Rule) -> "ErrorTable":
        """A table with these rules before its own, such as those that count only while a connection is opened."""
        return ErrorTable(
            self._broker,
            *rules,
            *self._rules,
            client=self._client,
            code=self._code,
            said=self._said,
            unwrap=self._unwrap,
        )

    @contextmanager
    def during(self, doing: str, *, through: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """A context in which failures are raised as what they mean; `doing` begins their sentences.

        What is raised inside and is ours, a cancellation, or one of `through`, which the caller looks at itself,
        leaves it as it is.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, (*OURS, *through)):
                raise
            raise self.translate(error, doing) from error

    async def ask(
        self,
        call: Awaitable[AnswerT],
        doing: str,
        *,
        within: float | None = None,
        through: tuple[type[Exception], ...] = (),
    ) -> AnswerT:
        """Await a call of the client, for `within` seconds at most, as in `during`."""
        limit = asyncio.timeout(within)
        with self.during(doing, through=through):
            try:
                async with limit:
                    return await call
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise ConnectionLost(f"{doing}: no answer within {within:g} s") from error

    def translate(self, failure: Failure, doing: str) -> Exception:
        """What it means while something is asked for; with what was raised as its cause."""
        return self._mean(failure, doing, publishing=False)

    def refusal(self, failure: Failure, topic: str) -> Exception:
        """What it means for a message that was published to `topic`: a result of `Driver.send`."""
        return self._mean(failure, f"publishing to {topic!r}", publishing=True)

    def knows(self, failure: Failure) -> bool:
        """Whether a rule fits; else it is taken for an outage that nobody had thought of."""
        return isinstance(failure, OURS) or self._rule(self._unwrap(failure)) is not _UNKNOWN

    def _mean(self, failure: Failure, doing: str, *, publishing: bool) -> Exception:
        if isinstance(failure, OURS):
            return failure
        inner = self._unwrap(failure)
        rule = self._rule(inner)
        said = masked(self._said(inner) if isinstance(inner, self._client) else sentence(inner))
        if rule is _UNKNOWN:
            self._report(failure, inner, doing, said)
        text = rule.says.format(doing=doing, said=said[:LONGEST].rstrip("."))
        ours = (rule.publishing if publishing else rule.raises)(text)
        ours.__cause__ = failure if isinstance(failure, BaseException) else None
        return ours

    def _rule(self, inner: Failure) -> Rule:
        is_clients = isinstance(inner, self._client)
        code = self._code(inner) if is_clients else None
        for rule in self._rules:
            for each in rule.when:
                if (
                    isinstance(inner, each)
                    if isinstance(each, type)
                    else is_clients and _fits(each, inner, code)
                ):
                    return rule
        return _OUTAGE if isinstance(inner, OSError | EOFError) else _UNKNOWN

    def _report(self, failure: Failure, inner: Failure, doing: str, said: str) -> None:
        """Log it whole, once for each kind: whoever sees it knows what the table lacks, or where a fault of ours is."""
        kind = (type(inner), self._code(inner) if isinstance(inner, self._client) else None)
        if kind in self._logged:
            return
        self._logged.add(kind)
        whole = traceback.format_exception(failure) if isinstance(failure, BaseException) else [repr(failure)]
        self._log.error(
            "%s: %s: %s: not an error that is known, so it is taken for an outage and tried again\n%s",
            doing,
            type(inner).__name__,
            said,
            masked("".join(whole)),
        )


def _fits(each: object, inner: Failure, code: Hashable) -> bool:
    return bool(each(inner)) if callable(each) else code is not None and each == code
