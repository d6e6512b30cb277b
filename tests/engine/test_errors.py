import asyncio
import logging
import sqlite3

import pytest

from things_kit import ConfigError, MessageTooLarge, PublishError, UnsupportedError
from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.errors import LONGEST, ErrorTable, on


class StoneError(Exception):
    def __init__(self, number: int, text: str = "", *, retriable: bool = False) -> None:
        super().__init__(text)
        self.number = number
        self.retriable = retriable


class LoginError(StoneError):
    pass


class Envelope(Exception):
    """As a client raises that keeps the error itself inside."""


def table() -> ErrorTable:
    return ErrorTable(
        "stone",
        on(LoginError, raises=ConfigError, says="{doing}: it does not accept this login: {said}"),
        on(1, raises=ConfigError, publishing=UnknownTopic),
        on(2, 3, raises=MessageTooLarge),
        on(4, raises=ConfigError, hint="ask for {fewer}"),
        on(5, raises=UnsupportedError),
        on(lambda error: error.retriable, raises=ConnectionLost),
        client=StoneError,
        code=lambda error: error.number,
    )


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (LoginError(1, "no"), ConfigError, "asking: it does not accept this login: no"),
        (StoneError(1, "no topic"), ConfigError, "asking: no topic"),
        (StoneError(3, "9 bytes"), MessageTooLarge, "asking: 9 bytes"),
        (StoneError(4, "denied"), ConfigError, "asking: denied (ask for {fewer})"),
        (StoneError(5, "old"), UnsupportedError, "asking: old"),
        (StoneError(9, "busy {now}", retriable=True), ConnectionLost, "asking: busy {now}"),
        (OSError(111, "refused"), ConnectionLost, "asking: [Errno 111] refused"),
        (TimeoutError(), ConnectionLost, "asking: TimeoutError"),
        (EOFError(), ConnectionLost, "asking: EOFError"),
    ],
)
def test_the_first_rule_that_fits_says_what_an_error_means(
    error: Exception, kind: type[Exception], text: str
) -> None:
    ours = table().translate(error, "asking")
    assert type(ours) is kind
    assert str(ours) == text
    assert ours.__cause__ is error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StoneError(1), UnknownTopic),
        (StoneError(2), MessageTooLarge),
        (StoneError(4), PublishError),
        (StoneError(9, retriable=True), ConnectionLost),
    ],
)
def test_a_message_that_is_published_is_refused_where_a_question_is_a_mistake_of_the_configuration(
    error: Exception, kind: type[Exception]
) -> None:
    ours = table().refusal(error, "orders")
    assert type(ours) is kind
    assert str(ours).startswith("publishing to 'orders': ")


@pytest.mark.parametrize("error", [StoneError(77, "what?"), AttributeError("writer"), RecursionError()])
def test_an_error_that_no_rule_knows_is_an_outage_and_logged_whole_once(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    errors = table()
    for _ in range(3):
        with (
            pytest.raises(ConnectionLost, match=r"^declaring 'orders': ") as raised,
            errors.during("declaring 'orders'"),
        ):
            raise error
        assert raised.value.__cause__ is error
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("things_kit.stone", logging.ERROR)
    assert "Traceback" in record.message
    assert "raise error" in record.message
    assert not errors.knows(error)


def test_errors_of_another_kind_are_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    errors = table()
    for number in (70, 71, 70):
        errors.translate(StoneError(number), "asking")
    assert len(caplog.records) == 2


def test_an_error_that_is_known_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    errors = table()
    errors.translate(StoneError(4), "asking")
    errors.translate(OSError(), "asking")
    assert not caplog.records
    assert errors.knows(StoneError(4))


@pytest.mark.parametrize(
    "ours", [ConnectionLost("away"), UnknownTopic("orders"), ConfigError("wrong"), PublishError("no")]
)
def test_what_is_ours_already_passes_through(ours: Exception) -> None:
    with pytest.raises(type(ours)) as raised, table().during("asking"):
        raise ours
    assert raised.value is ours
    assert table().refusal(ours, "orders") is ours


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), GeneratorExit()])
def test_a_cancellation_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, table().during("asking"):
        raise error
    assert raised.value is error


def test_what_the_caller_looks_at_itself_passes_through() -> None:
    with pytest.raises(StoneError), table().during("asking", through=(StoneError,)):
        raise StoneError(1)


def test_nothing_happens_where_nothing_failed() -> None:
    with table().during("asking"):
        pass


def test_a_client_may_raise_an_envelope_of_the_error() -> None:
    errors = ErrorTable(
        "stone",
        on(7, raises=ConfigError),
        code=lambda error: error.number,
        client=StoneError,
        unwrap=lambda raised: raised.args[0] if isinstance(raised, Envelope) else raised,
    )
    envelope = Envelope(StoneError(7, "inside"))
    ours = errors.translate(envelope, "asking")
    assert str(ours) == "asking: inside"
    assert ours.__cause__ is envelope


def test_a_failure_may_be_an_answer_and_no_exception() -> None:
    errors = ErrorTable(
        "stone", on("Denied", raises=ConfigError), client=dict, code=lambda answer: answer["code"]
    )
    ours = errors.refusal({"code": "Denied"}, "orders")
    assert type(ours) is PublishError
    assert ours.__cause__ is None


def test_one_table_may_go_before_another() -> None:
    """SQLite's file that cannot be opened is a wrong path at the start, and an outage later."""
    running = ErrorTable(
        "sqlite",
        on(sqlite3.SQLITE_CANTOPEN, raises=ConnectionLost),
        on(sqlite3.SQLITE_FULL, raises=ConnectionLost, says="{doing}: the disk is full"),
        client=sqlite3.Error,
        code=lambda error: error.sqlite_errorcode & 0xFF,
    )
    opening = running.preceded_by(on(sqlite3.SQLITE_CANTOPEN, raises=ConfigError))
    missing, full = sqlite3.OperationalError("unable to open"), sqlite3.OperationalError("full")
    missing.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN | 256
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert type(opening.translate(missing, "a.db")) is ConfigError
    assert type(running.translate(missing, "a.db")) is ConnectionLost
    assert str(opening.translate(full, "a.db")) == "a.db: the disk is full"


def test_a_sentence_is_one_line_and_has_an_end() -> None:
    ours = table().translate(StoneError(4, "first\n  second" + " and on" * LONGEST), "asking")
    assert str(ours).startswith("asking: first second and on")
    assert len(str(ours)) < LONGEST + 50


@pytest.mark.parametrize(
    "said",
    [
        "cannot reach amqp://me:geheim@host:5672/",
        "sasl.password=geheim is wrong",
        "the header Authorization: Bearer geheim",
        "SharedAccessSignature sr=x&sig=geheim&se=1",
        'answered {"access_token": "geheim"}',
        "GET https://queue/?X-Amz-Signature=geheim",
    ],
)
def test_neither_sentences_nor_the_log_have_secrets(said: str, caplog: pytest.LogCaptureFixture) -> None:
    for number in (4, 99):
        assert "geheim" not in str(table().translate(StoneError(number, said), "asking"))
    assert caplog.text
    assert "geheim" not in caplog.text


def test_text_without_secrets_is_left_as_it_is() -> None:
    said = "http://host:1/path: token expired: 3 of user me@example.org; key=orders, secret unknown"
    assert said in str(table().translate(StoneError(4, said), "asking"))


async def test_a_question_has_its_time() -> None:
    with pytest.raises(ConnectionLost, match=r"^asking: no answer within 0\.01 s$"):
        await table().ask(asyncio.Event().wait(), "asking", within=0.01)


async def test_a_question_that_is_answered_returns_the_answer() -> None:
    async def answer() -> int:
        return 3

    assert await table().ask(answer(), "asking", within=10) == 3


async def test_a_timeout_of_the_client_itself_is_an_outage() -> None:
    async def late() -> None:
        raise TimeoutError("the client gave up")

    with pytest.raises(ConnectionLost, match="asking: the client gave up"):
        await table().ask(late(), "asking", within=10)


async def test_a_cancelled_question_is_cancelled() -> None:
    begun = asyncio.Event()

    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(table().ask(forever(), "asking", within=10))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
