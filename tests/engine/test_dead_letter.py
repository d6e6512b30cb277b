from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from things_kit import ConfigError, Message
from things_kit.engine.dead_letter import (
    dead_letter_topic,
    failed_at,
    header_bytes,
    is_dead_letter,
    make_dead_letter,
    message_bytes,
    qualified_name,
    revive,
    rfc3339,
)

WHEN = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)
WHOLE = Message(
    "orders", b"v", b"k", {"type": "x"}, partition=3, offset=9, timestamp=WHEN, id="i-1", attempt=5
)
OURS = [
    "original-topic", "original-partition", "original-offset", "original-timestamp", "original-consumer-group",
    "consumer-group", "attempts", "error-type", "error", "timestamp",
]  # fmt: skip


def dead(message: Message = WHOLE, error: BaseException | None = None, group: str = "billing") -> Message:
    return make_dead_letter(
        message, topic=f"{message.topic}-dlq", group=group, error=error or ValueError("no")
    )


def test_a_dead_letter_has_exactly_these_headers() -> None:
    letter = dead()
    headers = dict(letter.headers)
    failed = datetime.fromisoformat(headers.pop("timestamp"))
    assert timedelta(0) <= datetime.now(UTC) - failed < timedelta(minutes=1)
    assert headers == {
        "type": "x",
        "original-topic": "orders",
        "original-partition": "3",
        "original-offset": "9",
        "original-timestamp": "2024-02-29T12:30:15.123456Z",
        "consumer-group": "billing",
        "attempts": "5",
        "error-type": "ValueError",
        "error": "no",
    }


def test_a_dead_letter_keeps_value_key_and_id() -> None:
    letter = dead()
    assert (letter.topic, letter.value, letter.key, letter.id) == ("orders-dlq", b"v", b"k", "i-1")
    assert (letter.timestamp, letter.attempt, letter.offset, letter.partition) == (None, 1, None, None)


def test_what_a_broker_has_not_is_left_out() -> None:
    letter = dead(Message("orders", b""))
    assert sorted(letter.headers) == [
        "attempts",
        "consumer-group",
        "error",
        "error-type",
        "original-topic",
        "timestamp",
    ]


def test_times_are_in_rfc_3339_and_utc() -> None:
    assert rfc3339(datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))) == "2024-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("error", "name"),
    [(ValueError(), "ValueError"), (ConfigError(), "things_kit.messaging.errors.ConfigError")],
)
def test_the_type_of_the_error_is_its_qualified_name(error: BaseException, name: str) -> None:
    assert qualified_name(error) == name
    assert dead(error=error).headers["error-type"] == name


@pytest.mark.parametrize(
    "text", ["x" * 5000, "ü" * 5000, "x" + "ü" * 5000, "xx" + "€" * 5000, "xxx" + "😀" * 5000]
)
def test_an_error_is_cut_at_1_kib_between_characters(text: str) -> None:
    cut = dead(error=ValueError(text)).headers["error"]
    assert 1024 - 4 < len(cut.encode()) <= 1024
    assert text.startswith(cut)


def test_an_error_that_utf_8_cannot_carry_is_replaced() -> None:
    assert dead(error=ValueError("a\ud800b")).headers["error"] == "a?b"


def test_an_error_that_cannot_be_printed_does_not_lose_the_message() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert dead(error=Hostile()).headers["error-type"].endswith("Hostile")


def test_the_group_of_a_replay_is_not_kept() -> None:
    assert "replay-group" not in dead(WHOLE.replace(headers={"replay-group": "billing", "a": "b"})).headers


@pytest.mark.parametrize("name", OURS)
def test_a_users_header_of_our_name_is_kept_aside_and_given_back(name: str) -> None:
    message = WHOLE.replace(headers={name: "mine", "a": "b"})
    letter = dead(message)
    assert letter.headers[f"original-header-{name}"] == "mine"
    assert revive(letter).headers == {name: "mine", "a": "b", "replay-group": "billing"}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = TEXT | st.builds(
    lambda depth, name: "original-header-" * depth + name, st.integers(0, 3), st.sampled_from(OURS) | TEXT
)
MESSAGES = st.builds(
    Message,
    topic=TEXT.filter(bool),
    value=st.binary(max_size=20),
    key=st.none() | st.binary(max_size=20),
    headers=st.dictionaries(NAMES.filter(lambda name: name != "replay-group"), TEXT, max_size=6),
    partition=st.none() | st.integers(0, 9),
    offset=st.none() | st.integers(0),
    timestamp=st.none() | st.datetimes(timezones=st.just(UTC)),
    id=st.none() | TEXT,
    attempt=st.integers(1, 100),
).filter(lambda message: not is_dead_letter(message))


@given(MESSAGES, st.text(max_size=2000))
def test_revive_gives_back_the_message_that_a_dead_letter_was(message: Message, error: str) -> None:
    back = revive(dead(message, ValueError(error)))
    assert dict(back.headers) == {**message.headers, "replay-group": "billing"}
    for field in ("topic", "value", "key", "id", "timestamp"):
        assert getattr(back, field) == getattr(message, field)


@given(MESSAGES, st.integers(1, 3))
def test_revive_gives_it_back_from_a_dead_letter_of_dead_letters_too(message: Message, times: int) -> None:
    letter = dead(message)
    for n in range(times):
        arrived = letter.replace(offset=n, timestamp=WHEN, attempt=2)
        letter = make_dead_letter(arrived, topic="further", group=f"watchers-{n}", error=KeyError())
    back = revive(letter)
    assert dict(back.headers) == {**message.headers, "replay-group": "billing"}
    assert (back.topic, back.value, back.timestamp) == (message.topic, message.value, message.timestamp)


@given(MESSAGES)
def test_a_message_that_fails_again_after_its_replay_is_the_same_dead_letter(message: Message) -> None:
    first = dead(message)
    again = dead(
        revive(first).replace(partition=message.partition, offset=message.offset, attempt=message.attempt)
    )
    assert {**again.headers, "timestamp": ""} == {**first.headers, "timestamp": ""}


def test_a_dead_letter_that_fails_keeps_where_it_came_from_first() -> None:
    letter = dead().replace(partition=0, offset=77, timestamp=WHEN + timedelta(days=1), attempt=2)
    again = make_dead_letter(letter, topic="orders-dlq-dlq", group="watchers", error=KeyError("x"))
    for name in ("original-topic", "original-partition", "original-offset", "original-timestamp"):
        assert again.headers[name] == letter.headers[name]
    assert again.headers["consumer-group"] == "watchers"
    assert again.headers["error-type"] == "KeyError"
    assert again.headers["attempts"] == "2"
    assert revive(again).headers["replay-group"] == "billing"


def test_a_message_that_is_no_dead_letter_needs_to_be_told_where_it_goes() -> None:
    with pytest.raises(ConfigError, match="is no dead letter; say with `to`"):
        revive(WHOLE)
    sent = revive(WHOLE, "elsewhere")
    assert (sent.topic, sent.value, sent.headers, sent.id) == ("elsewhere", b"v", {"type": "x"}, "i-1")


def test_a_message_sent_elsewhere_is_for_all_groups() -> None:
    assert "replay-group" not in revive(dead(), "elsewhere").headers


@pytest.mark.parametrize("time", ["", "yesterday", "12"])
def test_a_time_that_cannot_be_read_is_none(time: str) -> None:
    letter = dead()
    broken = letter.replace(headers={**letter.headers, "original-timestamp": time, "timestamp": time})
    assert revive(broken).timestamp is None
    assert failed_at(broken) is None


def test_a_time_without_zone_is_read_as_utc() -> None:
    letter = dead()
    assert failed_at(
        letter.replace(headers={**letter.headers, "timestamp": "2024-01-01T00:00:00"})
    ) == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("template", "topic", "name"),
    [
        ("{topic}-dlq", "orders", "orders-dlq"),
        ("{topic}-dlq", "orders.fifo", "orders-dlq.fifo"),
        ("all-failures", "orders.fifo", "all-failures.fifo"),
        ("{topic}.{group}.dead.fifo", "orders.fifo", "orders.billing.dead.fifo"),
        ("dead", "orders", "dead"),
        ("{{x}}", "orders", "{x}"),
    ],
)
def test_the_name_of_a_dead_letter(template: str, topic: str, name: str) -> None:
    assert dead_letter_topic(template, topic, "billing") == name


@pytest.mark.parametrize(
    "template", ["{", "{nothing}", "{0}", "{}", "{topic.x}", "{topic!x}", "{topic:d}", "{topic[x]}"]
)
def test_a_template_that_cannot_be_filled_is_refused_with_a_sentence(template: str) -> None:
    with pytest.raises(ConfigError, match=r"only the fields \{topic\} and \{group\} can be filled"):
        dead_letter_topic(template, "orders", "billing")


@pytest.mark.parametrize("topic", ["orders", "orders.fifo"])
def test_a_dead_letter_needs_its_own_topic(topic: str) -> None:
    with pytest.raises(ConfigError, match="names the topic"):
        dead_letter_topic("{topic}", topic, "billing")


# --- at the broker's limit of size


def fitted(message: Message, limit: int, group: str = "billing", error: str = "no") -> Message:
    return make_dead_letter(message, topic="orders-dlq", group=group, error=ValueError(error), limit=limit)


ORDER = ["error", "error-type", "timestamp", "attempts"]
OTHERS = ["original-timestamp", "original-offset", "original-partition"]


def test_without_room_a_dead_letter_leaves_headers_out_from_the_least_needed_on() -> None:
    whole = fitted(WHOLE, 10_000)
    sizes = [message_bytes(whole)]
    for name in [*ORDER, *OTHERS]:
        sizes.append(sizes[-1] - header_bytes(name, whole.headers[name]))
    for number, size in enumerate(sizes):
        left_out = [*ORDER, *OTHERS][:number]
        letter = fitted(WHOLE, size)
        assert set(whole.headers) - set(letter.headers) == set(left_out)
        assert is_dead_letter(letter)
        assert revive(letter).topic == "orders"
        assert revive(letter).headers == {"type": "x", "replay-group": "billing"}
    bare = fitted(WHOLE, sizes[-1] - 1)
    assert bare.headers == {"type": "x", "tk-dead-letter": ""}


@given(
    MESSAGES.filter(lambda message: not is_dead_letter(message)), st.integers(0, 400), st.text(max_size=2000)
)
@example(Message("orders", b"", None, {"original-topic": "mine"}), 32, "")
def test_a_dead_letter_is_never_cut_and_no_larger_than_the_limit_if_that_can_be(
    message: Message, limit: int, error: str
) -> None:
    letter = fitted(message, limit, error=error)
    assert (letter.value, letter.key, letter.id) == (message.value, message.key, message.id)
    if message_bytes(letter) > limit:
        assert dict(letter.headers) == dict(message.headers)
    if is_dead_letter(letter) and "tk-dead-letter" not in letter.headers:
        assert dict(revive(letter).headers) == {**message.headers, "replay-group": "billing"}
    else:
        assert dict(revive(letter, "t").headers) == dict(message.headers)


def test_without_any_room_it_goes_bare_but_for_a_mark_and_replay_asks_where_to() -> None:
    large = Message("orders", b"v" * 100, headers={"a": "b"}, id="i")
    marked = fitted(large, 120)
    assert marked.headers == {"a": "b", "tk-dead-letter": ""}
    assert is_dead_letter(marked)
    with pytest.raises(ConfigError, match="does not say where it came from; say with `to`"):
        revive(marked)
    assert revive(marked, "orders").headers == {"a": "b"}
    bare = fitted(large, 102)
    assert bare.headers == {"a": "b"}
    assert not is_dead_letter(bare)


def test_the_log_has_what_was_left_out(caplog: pytest.LogCaptureFixture) -> None:
    fitted(WHOLE, message_bytes(fitted(WHOLE, 10_000)) - 1, error="no")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "'i-1'" in record.message
    assert "error='no'" in record.message


def test_a_marked_dead_letter_that_fails_again_comes_from_where_it_failed() -> None:
    marked = fitted(Message("orders", b"v" * 100, id="i"), 120).replace(topic="orders-dlq")
    again = make_dead_letter(marked, topic="x", group="watchers", error=ValueError())
    assert again.headers["original-topic"] == "orders-dlq"
    assert "tk-dead-letter" not in again.headers


def test_a_dead_letter_of_a_dead_letter_goes_bare_with_the_headers_that_the_message_had() -> None:
    first = dead(WHOLE.replace(headers={"error": "mine"}))
    again = fitted(first, len(WHOLE.value) + len(WHOLE.key or b"") + len("errormine") + len("tk-dead-letter"))
    assert again.headers == {"error": "mine", "tk-dead-letter": ""}
