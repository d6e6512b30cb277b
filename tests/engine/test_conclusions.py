"""What follows from facts, whichever broker they are of."""

import math
from typing import Any

import pytest

from things_kit import ConfigError
from things_kit.engine.conclusions import conclude
from things_kit.engine.driver import Capabilities
from things_kit.engine.facts import (
    Blocked,
    Facts,
    Finding,
    GroupFacts,
    Limit,
    Need,
    Question,
    Retention,
    Server,
    TopicFacts,
)
from things_kit.engine.phrases import counted, duration, some

QUESTION = Question("orders", "billing", retry_span=3600)
LOG = Capabilities(retained=True, max_message_bytes=1000)
QUEUES = Capabilities(max_message_bytes=1000)


def found(
    facts: Facts, capabilities: Capabilities = LOG, *, declares: bool = True, question: Question = QUESTION
) -> list[Finding]:
    findings = list(conclude(facts, question, capabilities, declares=declares))
    assert all(finding.remedy for finding in findings if finding.level != "ok")
    assert all(finding.what.endswith(".") for finding in findings)
    return findings


def ill(facts: Facts, *more: Any, **options: Any) -> list[tuple[str, str]]:
    return [(each.level, each.what) for each in found(facts, *more, **options) if each.level != "ok"]


def topic(**told: Any) -> Facts:
    return Facts(topics=[TopicFacts(**{"name": "orders", **told})])


def group(**told: Any) -> Facts:
    return Facts(groups=[GroupFacts(**{"name": "billing", "topic": "orders", **told})])


def dead(**told: Any) -> Facts:
    source = TopicFacts(name="orders", retention=Retention(604_800, "age"), largest=1000, copies=3)
    return Facts(topics=[source, TopicFacts(**{"name": "orders-dlq", **told})])


def test_what_is_well_is_said_in_a_few_words() -> None:
    facts = topic(groups=["billing"], retention=Retention(), copies=3, largest=1000)
    facts.groups = group(place="queue 'q'", ready=2, held=1, consumers=1).groups
    facts.servers = [Server("a:1", "Stone", "4.1", [Need((4, 1), "it has no lichen")])]
    facts.limits = [Limit("a:1", 5, 10, "bytes", "it takes nothing", "Raise it.")]
    assert [(each.level, each.what) for each in found(facts)] == [
        ("ok", "It is Stone 4.1."),
        ("ok", "It has 1 group."),
        ("ok", "It keeps messages for ever."),
        ("ok", "It has 1 consumer of orders; 3 messages wait or are being handled."),
    ]


@pytest.mark.parametrize(
    ("version", "level", "what"),
    [
        ("3.9.1", "error", "It is Stone 3.9.1: it loses what is due."),
        ("3.10", "warning", "It is Stone 3.10: it is slow."),
        ("4.0.0-rc1", "ok", "It is Stone 4.0.0-rc1."),
        ("", "error", "It is Stone : it loses what is due."),
    ],
)
def test_a_version_must_have_what_is_needed(version: str, level: str, what: str) -> None:
    needs = [Need((3, 10), "it loses what is due"), Need((4, 0), "it is slow", "warning")]
    [finding] = found(Facts(servers=[Server("a:1", "Stone", version, needs)]))
    assert (finding.level, finding.what) == (level, what)


@pytest.mark.parametrize(("used", "level"), [(89, None), (90, "warning"), (100, "error"), (120, "error")])
def test_what_runs_full_is_said_before(used: int, level: str | None) -> None:
    facts = Facts(limits=[Limit("a:1", used, 100, "bytes", "it takes no messages", "Raise it.")])
    assert [each[0] for each in ill(facts)] == ([level] if level else [])


# --- topics


def test_a_missing_topic_is_created_by_who_uses_it_unless_that_is_forbidden() -> None:
    assert ill(topic(there=False)) == [
        ("warning", "There is no such topic; who first publishes or consumes creates it.")
    ]
    assert ill(topic(there=False, others=["order"])) == [
        ("warning", "There is no such topic; there are order.")
    ]
    [(level, what)] = ill(topic(there=False), declares=False)
    assert (level, "declare=false" in what) == ("error", True)


def test_a_name_that_cannot_be_is_an_error() -> None:
    assert ill(topic(there=False, impossible="Stone cannot have it.")) == [("error", "Stone cannot have it.")]


def test_a_topic_that_no_group_has_loses_messages_where_they_are_not_retained() -> None:
    assert [each[0] for each in ill(topic(groups=[]), QUEUES)] == ["warning"]
    assert ill(topic(groups=[])) == []
    assert ill(topic(groups=None), QUEUES) == []


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (
            Retention(60, "retention.ms", 1000),
            [("error", "It keeps messages for 1 min, but they may be retried for 1 h: some would be lost.")],
        ),
        (Retention(7200, "age"), [("warning", "It keeps messages for 2 h, handled or not.")]),
        (Retention(604_800, "age"), []),
        (
            Retention(bound="10 messages (max_msgs)"),
            [("warning", "Beyond 10 messages (max_msgs) it deletes the oldest, handled or not.")],
        ),
    ],
)
def test_messages_must_be_kept_while_they_are_retried(kept: Retention, said: list[tuple[str, str]]) -> None:
    assert ill(topic(retention=kept)) == said
    assert ill(group(retention=kept)) == said


def test_the_remedy_for_retention_is_in_the_unit_of_the_setting() -> None:
    [finding] = found(topic(retention=Retention(60, "retention.ms", 1000)))
    assert finding.remedy == "Set retention.ms to more than 3600000, or retry for less long."


def test_one_copy_and_a_smaller_size_are_warnings() -> None:
    assert [each[0] for each in ill(topic(copies=1))] == ["warning"]
    [(level, what)] = ill(topic(largest=999, largest_setting="max.bytes"))
    assert (level, what) == ("warning", "It takes 999 bytes, less than max_message_bytes, 1,000.")
    assert ill(topic(largest=999), Capabilities(retained=True)) == []


# --- dead letters


def test_a_dead_letter_that_is_missing_is_made_by_a_consumer() -> None:
    [(level, what)] = ill(dead(there=False))
    assert (level, what.startswith("It does not exist")) == ("warning", True)
    assert ill(Facts(topics=[TopicFacts(name="orders-dlq", there=False)])) == []


def test_a_dead_letter_has_no_less_of_anything_than_its_source() -> None:
    less = ill(dead(retention=Retention(60, "age"), largest=999, largest_setting="size", copies=1))
    assert [each[0] for each in less] == ["warning"] * 3
    assert less[0][1] == "It keeps dead letters for 1 min, shorter than orders (7 d)."
    assert ill(dead(retention=Retention(), largest=1000, copies=3)) == []
    assert ill(dead()) == []


def test_a_dead_letter_needs_its_group_where_messages_are_not_retained() -> None:
    facts = dead()
    facts.groups = [GroupFacts(name="dead-letters", topic="orders-dlq", there=False)]
    assert [each[0] for each in ill(facts, QUEUES)] == ["error"]
    assert ill(facts) == []


# --- groups


def test_a_missing_group_begins_later_or_has_missed_something() -> None:
    [(level, what)] = ill(group(there=False, ready=3))
    assert (level, "begin at the earliest of the 3 messages" in what) == ("warning", True)
    [(level, what)] = ill(group(there=False), declares=False)
    assert (level, "declare=false" in what) == ("error", True)
    [(level, what)] = ill(group(there=False, place="queue 'q'"), QUEUES)
    assert (level, what) == (
        "error",
        "It has no queue 'q' in orders: what is published before it has one does not reach it.",
    )


@pytest.mark.parametrize(
    ("ready", "held", "consumers", "stuck"),
    [
        (3, 0, 0, True),
        (3, None, 0, True),
        (0, 0, 0, False),
        (3, 2, 0, False),
        (3, 0, 1, False),
        (3, 0, None, False),
    ],
)
def test_a_group_is_stuck_where_something_waits_and_nobody_receives(
    ready: int, held: int | None, consumers: int | None, stuck: bool
) -> None:
    said = ill(group(ready=ready, held=held, consumers=consumers))
    assert said == (
        [("error", "It is stuck: 3 messages of orders wait, and nobody receives.")] if stuck else []
    )


@pytest.mark.parametrize(
    ("told", "level", "what"),
    [
        ({"blocked": [Blocked("It is paused.", "Resume it.")]}, "error", "It is paused."),
        ({"deliveries": 5}, "error", "After 5 deliveries of a message the broker itself drops it."),
        (
            {"deliveries": 1, "goes_to": "a queue"},
            "warning",
            "After 1 delivery of a message the broker itself moves it to a queue, past the dead letter.",
        ),
        ({"idle": 3600.0}, "warning", "It is deleted, with its messages, when nobody has received for 1 h."),
        ({"filter": "a = b"}, "warning", "It has a filter, and never gets what does not fit: a = b."),
        ({"largest": 9}, "error", "It takes 9 bytes, less than its topic: larger messages never reach it."),
    ],
)
def test_what_keeps_messages_from_a_group_is_said(told: dict[str, Any], level: str, what: str) -> None:
    assert ill(group(**told)) == [(level, what)]


@pytest.mark.parametrize(
    ("told", "levels"),
    [
        ({"ready": 20_000, "consumers": 0}, ["warning"]),
        ({"ready": 20_000, "consumers": 1}, []),
        ({"ready": 9_000, "consumers": 0}, []),
        ({"ready": 20_000, "consumers": 0, "name": "dead-letters"}, []),
        ({"idle": 60.0}, ["warning"]),
        ({"retention": Retention(60, "age")}, ["error"]),
    ],
)
def test_of_groups_that_were_not_asked_about_only_what_is_not_well_is_said(
    told: dict[str, Any], levels: list[str]
) -> None:
    assert [each.level for each in found(group(**{"name": "audit", **told}))] == levels


# --- what cannot be seen


def test_what_this_user_may_not_look_at_leaves_the_rest() -> None:
    facts = Facts()
    with facts.looking("the topic"):
        raise ConfigError("access denied")
    with facts.looking("the group"):
        facts.find("ok", "the group", "It is there.")
    assert [(each.level, each.subject, each.what) for each in found(facts)] == [
        ("ok", "the group", "It is there."),
        ("warning", "the topic", "Not everything could be looked at: access denied."),
    ]


# --- phrases


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.25, "0.25 s"), (59, "59 s"), (60, "1 min"), (5400, "1.5 h"), (604_800, "7 d"), (math.inf, "ever")],
)
def test_a_duration_is_in_the_unit_that_people_use(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_things_are_counted_and_named() -> None:
    assert (counted(1, "message"), counted(2000, "message")) == ("1 message", "2,000 messages")
    assert some(range(9)) == "0, 1, 2, 3, 4, 5, 6, 7, ..."
