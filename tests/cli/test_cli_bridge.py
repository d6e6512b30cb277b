"""`things-kit bridge`, as people and programs use it, and killed again and again."""

import asyncio
import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import PATIENCE, consumed
from things_kit import Message, connect
from things_kit.testing.conformance.fidelity import same
from things_kit.testing.conformance.waiting import eventually

MANY = 1200
KEYS = 7
KILLS = 4


@pytest.fixture
def target(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/target.db"


def numbered(number: int) -> Message:
    return Message(
        "orders", b"%d" % number, key=b"k%d" % (number % KEYS), headers={"n": str(number)}, id=f"m-{number}"
    )


def everything(url: str, topic: str) -> list[Message]:
    """All that is in a topic, in its order, duplicates included."""

    async def read() -> list[Message]:
        async with connect(url) as broker:
            number = await broker.lag(topic, group="reader")
            return await consumed(url, topic, number) if number else []

    return asyncio.run(asyncio.wait_for(read(), PATIENCE))


async def until_arrived(url: str, topic: str, number: int) -> None:
    async with connect(url) as broker:

        async def arrived() -> bool:
            return (await broker.lag(topic, group="nobody") or 0) >= number

        await eventually(arrived, PATIENCE)


def test_until_empty_moves_all_and_says_so(cli: Any, publish: Any, url: str, target: str) -> None:
    publish(*map(numbered, range(10)))
    result = cli("bridge", url, target, "orders", "--until-empty")
    assert result.exit_code == 0
    assert result.stdout.startswith("moved 10 messages of 1 topic in ")
    assert result.stdout.endswith("/s)\n")
    assert result.stderr == "moving orders as the group bridge\n"
    assert [
        same(numbered(n).replace(timestamp=m.timestamp), m)
        for n, m in enumerate(everything(target, "orders"))
    ]
    again = cli("bridge", url, target, "orders", "--until-empty")
    assert again.stdout.startswith("moved 0 messages of 1 topic in ")


def test_programs_get_one_object(cli: Any, publish: Any, url: str, target: str) -> None:
    publish(numbered(1), Message("bills", b"2"))
    result = cli(
        "bridge",
        url,
        target,
        "orders",
        "bills",
        "--map",
        "bills=old.bills",
        "--group",
        "g",
        "--until-empty",
        "--json",
    )
    figures = json.loads(result.stdout)
    assert figures.pop("seconds") > 0
    assert figures == {
        "moved": 2,
        "dead_lettered": 0,
        "held": 0,
        "topics": {"orders": "orders", "bills": "old.bills"},
        "group": "g",
    }


def test_target_groups_are_declared_first(cli: Any, publish: Any, url: str, target: str) -> None:
    publish(numbered(1))
    groups = ("--target-group", "billing", "--target-group", "mail")
    assert cli("bridge", url, target, "orders", "--until-empty", *groups).exit_code == 0
    assert cli("lag", target, "orders", "mail").stdout == "1\n"


def test_what_is_too_large_for_the_target_goes_to_the_dead_letter_if_asked(
    cli: Any, publish: Any, url: str, target: str
) -> None:
    publish(numbered(1), Message("orders", b"x" * 200, key=b"k1"), numbered(8))
    result = cli(
        "bridge",
        url,
        f"{target}?max_message_bytes=100",
        "orders",
        "--until-empty",
        "--dead-letter",
        "{topic}-refused",
    )
    assert result.exit_code == 0
    assert "1 message refused, and in the dead letter of the source" in result.stdout
    assert [message.value for message in everything(target, "orders")] == [b"1", b"8"]
    (letter,) = cli("dlq", "list", url, "orders-refused", "--json").stdout.splitlines()
    assert json.loads(letter)["error_type"].endswith("MessageTooLarge")


def test_a_held_message_is_said_aloud_and_stays(program: Any, publish: Any, url: str, target: str) -> None:
    publish(Message("orders", b"x" * 200, id="big"))
    running = program("bridge", url, f"{target}?max_message_bytes=100", "orders")
    assert running.line("stderr") == "moving orders as the group bridge\n"
    assert "refuses message 'big' of orders" in running.line("stderr")
    running.interrupt()
    code, out, _ = running.end()
    assert code == 0
    assert "1 message refused, and still at the source" in out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_terminal_shows_how_it_gets_on(program: Any, publish: Any, url: str, target: str) -> None:
    publish(numbered(1), Message("orders", b"x" * 200))
    ours, terminal = os.openpty()
    running = program("bridge", url, f"{target}?max_message_bytes=100", "orders", stderr=terminal)
    os.close(terminal)
    seen = b""
    while not re.search("1 moved · [\\d,]+/s · 1 left · 1 refused and held", seen.decode(errors="ignore")):
        seen += os.read(ours, 4096)
    running.interrupt()
    with suppress(OSError):  # Linux reports the end so
        while os.read(ours, 4096):
            pass
    assert running.end()[0] == 0
    os.close(ours)


@pytest.mark.parametrize("stopped_by", [signal.SIGINT, signal.SIGTERM])
def test_without_until_empty_it_runs_until_it_is_stopped(
    program: Any, publish: Any, url: str, target: str, stopped_by: signal.Signals
) -> None:
    publish(numbered(1))
    running = program("bridge", url, target, "orders")
    asyncio.run(until_arrived(target, "orders", 1))
    publish(numbered(2))
    asyncio.run(until_arrived(target, "orders", 2))
    running.process.send_signal(stopped_by)
    code, out, _ = running.end()
    assert (code, out.split(" in ")[0]) == (0, "moved 2 messages of 1 topic")


def test_stopped_before_all_was_moved_it_does_not_claim_success(
    program: Any, publish: Any, url: str, target: str
) -> None:
    publish(Message("orders", b"x" * 200))
    running = program("bridge", url, f"{target}?max_message_bytes=100", "orders", "--until-empty")
    running.line("stderr")
    assert "refuses" in running.line("stderr")
    running.interrupt()
    assert running.end()[0] == 130


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ordres",), "'ordres'"),
        (("orders", "--map", "orders"), "--map takes OLD=NEW, such as orders=shop.orders; it is 'orders'"),
        (("orders", "--map", "=x"), "--map takes OLD=NEW"),
        (("orders", "--map", "orders="), "--map takes OLD=NEW"),
        (("orders", "--map", "orders=a", "--map", "orders=b"), "--map names 'orders' twice"),
        (("orders", "--map", "bills=b"), "'bills' is renamed, but is none of the topics to be moved: orders"),
        (("orders", "orders"), "topics must differ"),
        ((), "TOPIC"),
    ],
)
def test_wrong_use_is_a_sentence_and_the_code_2(
    cli: Any, publish: Any, url: str, target: str, arguments: tuple[str, ...], sentence: str
) -> None:
    publish(numbered(1))
    result = cli("bridge", url, target, *arguments, "--until-empty")
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_a_loop_is_refused(cli: Any, publish: Any, url: str) -> None:
    publish(numbered(1))
    result = cli("bridge", url, url, "orders", "--until-empty")
    assert result.exit_code == 2
    assert "come round" in result.stderr
    assert cli("bridge", url, url, "orders", "--map", "orders=copies", "--until-empty").exit_code == 0


def test_killed_again_and_again_it_loses_nothing_and_keeps_the_order_of_keys(
    program: Callable[..., Any], publish: Any, url: str, target: str
) -> None:
    publish(*map(numbered, range(MANY)))
    chance = random.Random(7)
    arguments = ("bridge", f"{url}?lease=0.5", target, "orders", "--until-empty", "--max-in-flight", "24")
    asyncio.run(declared(target))
    goal = 0
    for _ in range(KILLS):
        running = program(*arguments)
        goal += chance.randrange(20, 200)
        asyncio.run(until_arrived(target, "orders", goal))
        running.process.kill()
        running.end()
    assert program(*arguments, stderr=None).end()[0] == 0

    arrived = everything(target, "orders")
    assert {message.id for message in arrived} == {f"m-{number}" for number in range(MANY)}
    assert len(arrived) < MANY + KILLS * 24 + 1  # what was in hand when it was killed comes twice
    firsts: dict[str | None, Message] = {}
    for message in arrived:
        firsts.setdefault(message.id, message)
        assert same(numbered(int(message.value)).replace(timestamp=message.timestamp), message)
    for key in range(KEYS):
        values = [int(message.value) for message in firsts.values() if message.key == b"k%d" % key]
        assert values == list(range(key, MANY, KEYS))


async def declared(url: str) -> None:
    async with connect(url) as broker:
        await broker.declare("orders")
