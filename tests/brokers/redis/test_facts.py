"""The doctor on Redis: each finding on a real server, or on what a server would say."""

from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("redis")

from things_kit import Message, connect
from things_kit.brokers.redis.facts import add_server
from things_kit.brokers.redis.options import RedisOptions
from things_kit.engine.conclusions import conclude
from things_kit.engine.diagnosis import diagnose
from things_kit.engine.driver import Capabilities
from things_kit.engine.facts import Facts, Finding, Question
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own
from things_kit.testing.servers.redis import RedisServer

server = own(RedisServer)


async def findings(url: str, **question: Any) -> list[Finding]:
    async with connect(url) as broker:
        return await diagnose(broker, Question(**question))


def bad(found: list[Finding]) -> dict[str, str]:
    assert all(finding.remedy for finding in found if finding.level != "ok")
    return {finding.subject: finding.level for finding in found if finding.level != "ok"}


async def test_a_server_that_keeps_a_file_is_well(server: RedisServer) -> None:
    assert bad(await findings(server.url)) == {}


async def test_limits_that_delete_what_nobody_has_read_are_a_warning(server: RedisServer) -> None:
    topic = f"orders-{uuid4().hex}"
    async with connect(server.url) as broker:
        await broker.declare(topic, groups=["g"])
        await broker.declare(f"{topic}-dlq", groups=["dead-letters"])
    assert bad(await findings(f"{server.url}?maxlen=5&retain=-1", topic=topic)) == {
        f"topic {topic}": "warning",
        "retain": "warning",
    }


async def test_replicas_that_are_not_there_are_an_error(server: RedisServer) -> None:
    assert bad(await findings(f"{server.url}?wait_replicas=1")) == {"server": "error"}


async def test_a_server_that_evicts_and_keeps_no_file_is_found(server: RedisServer) -> None:
    settings = {"appendonly": "no", "maxmemory": "100000000", "maxmemory-policy": "allkeys-lru"}
    before = {"appendonly": "yes", "maxmemory": "0", "maxmemory-policy": "noeviction"}
    try:
        for name, value in settings.items():
            server.ask("CONFIG", "SET", name, value)
        found = await findings(server.url)
    finally:
        for name, value in before.items():
            server.ask("CONFIG", "SET", name, value)
    said = " ".join(finding.what for finding in found)
    assert "append-only" in said
    assert "allkeys-lru" in said


async def test_a_topic_that_is_missing_expires_or_is_no_stream_is_found(server: RedisServer) -> None:
    topic = f"orders-{uuid4().hex}"
    assert bad(await findings(server.url, topic=topic))[f"topic {topic}"] == "warning"
    server.ask("SET", topic, "x")
    assert bad(await findings(server.url, topic=topic))[f"topic {topic}"] == "error"
    server.ask("DEL", topic)
    server.ask("XADD", topic, "*", "value", "x")
    server.ask("EXPIRE", topic, "1000")
    assert bad(await findings(server.url, topic=topic))[f"topic {topic}"] in {"error", "warning"}
    said = [finding.what for finding in await findings(server.url, topic=topic)]
    assert any("expires" in what for what in said)
    assert any("no group" in what for what in said)


async def test_a_group_without_consumers_that_lags_is_an_error(server: RedisServer) -> None:
    topic = f"orders-{uuid4().hex}"
    server.ask("XADD", topic, "*", "value", "x")
    server.ask("XGROUP", "CREATE", topic, "g", "0")
    assert bad(await findings(server.url, topic=topic, group="g"))["group g"] == "error"
    recorder = Recorder()
    async with connect(server.url) as broker, broker.consumer(topic, group="g", handler=recorder):
        await recorder.until_done(1, 10)
        assert "group g" not in bad(await findings(server.url, topic=topic, group="g"))


async def test_what_is_due_in_a_topic_at_which_nobody_looks_is_seen(server: RedisServer) -> None:
    topic = f"orders-{uuid4().hex}"
    async with connect(server.url) as broker:
        await broker.declare(topic, ["g"])
        await broker.producer().publish(Message(topic, b"v"), after=60)
    assert "group g" not in bad(await findings(server.url, topic=topic, group="g"))
    async with connect(server.url) as broker:  # which would carry it on, were it due while this is open
        await broker.producer().publish(Message(topic, b"v"), after=1)

    async def seen() -> bool:
        return bad(await findings(server.url, topic=topic, group="g")).get("group g") == "error"

    await eventually(seen, 20)
    server.ask("DEL", topic)
    said = [each.what for each in await findings(server.url, topic=topic)]
    assert any("with 2 messages scheduled for it" in what for what in said)


@pytest.mark.parametrize(
    ("info", "levels"),
    [
        ({"redis_version": "5.0.14"}, ["error"]),
        ({"redis_version": "6.2.1"}, ["warning"]),
        ({"redis_version": "7.2.4"}, []),
        ({"aof_last_write_status": "err"}, ["error"]),
        ({"aof_enabled": 0}, ["warning"]),
        ({"loading": 1}, ["error"]),
        ({"maxmemory": 100, "used_memory": 95}, ["warning"]),
        ({"maxmemory": 100, "maxmemory_policy": "volatile-lru"}, ["warning"]),
        ({"maxmemory": 100, "maxmemory_policy": "allkeys-lru"}, ["error"]),
        ({"role": "slave"}, ["error"]),
    ],
)
def test_what_a_server_may_say_of_itself(info: dict[str, Any], levels: list[str]) -> None:
    facts = Facts()
    add_server(facts, "server", {"redis_version": "7.2.4", "aof_enabled": 1, **info}, RedisOptions())
    found = conclude(facts, Question(), Capabilities(), declares=True)
    assert [finding.level for finding in found if finding.level != "ok"] == levels
