"""Every program of `examples/` runs as it stands, and says what it is to say."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from examples.integration_test import main as integration_test

from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.postgres import PostgresServer

FOLDER = Path(__file__).parent.parent / "examples"

SAYS = {
    "simple_handler.py": ['sending {"to": "ada@example.com", "text": "hello"}', "to ada@example.com: hello"],
    "retries.py": ["first, attempt 1", "first, attempt 2", "first, attempt 3", "second, attempt 1"],
    "dead_letter.py": ["dead letter of payments: the card was refused", "replayed: 1", "paid p-1"],
    "request_reply.py": [
        "o-1 costs 1190 cents",
        "100 at once: 589050 cents",
        "refused: o-2 asks for less than nothing",
        "no reply from 'returns' within 0.2 s",
    ],
    "scheduling.py": ["to come: 3", "cancelled: True", "welcome", "pay o-2 at last", "to come: 0"],
    "router.py": ["order.created: o-1", "order.changed: o-1", "paid: o-1"],
    "schema_versions.py": [
        "o-1: Ada Lovelace pays in EUR",
        "o-2: Grace Hopper pays in USD",
        "o-3: Alan Turing pays in GBP",
    ],
    "order_service.py": ["bill of o-1: 20", "o-2 is cancelled"],
    "flow_control.py": [
        "at first: deduplicate ready, circuit_breaker closed, throttle free",
        "down: deduplicate ready, circuit_breaker open, throttle throttling",
        "20 charges for 20 orders",
        "dead letters: 0",
    ],
    "transforms.py": [
        "read 5 bytes",
        "sent aes-gcm",
        "read 200000 bytes",
        "sent gzip, aes-gcm, claim-check",
    ],
    "two_brokers.py": ["bill of o-1"],
    "database.py": ["ada owes 10", "bob owes 5"],
    "outbox.py": ["bill of o-1: 1190 cents", "bill of o-3: 700 cents", "billed: 2"],
    "django_outbox.py": ["bill for ada", "bill for cleo", "billed: 2 of 2"],
    "mocks.py": ["all as expected"],
    "web.py": ["202 ordered", "billed o-1"],
}
ELSEWHERE = {"integration_test.py", "driver.py", "simulation.py", "simulation_outbox.py", "shop"}
"""Those that a test below or beside this runs, or the conformance suite."""

TAKE_A_URL = [
    "simple_handler.py",
    "retries.py",
    "dead_letter.py",
    "request_reply.py",
    "router.py",
    "flow_control.py",
    "transforms.py",
    "schema_versions.py",
    "order_service.py",
]

kafka = shared(KafkaServer, "kafka")
postgres = shared(PostgresServer, "postgres")


def run(*words: str) -> list[str]:
    command = [sys.executable, "-W", "error", str(FOLDER / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(done.stdout.splitlines())


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name: str) -> None:
    assert run(name) == sorted(SAYS[name])


@pytest.mark.parametrize("name", TAKE_A_URL)
def test_an_example_runs_on_the_broker_of_a_url(name: str, tmp_path: Path) -> None:
    assert run(name, f"sqlite:///{tmp_path}/events.db") == sorted(SAYS[name])


def test_the_database_may_be_a_real_postgresql(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        assert run("database.py", url.replace("://", "+asyncpg://")) == sorted(SAYS["database.py"])


def test_djangos_database_may_be_a_real_postgresql(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        assert run("django_outbox.py", url) == sorted(SAYS["django_outbox.py"])


async def test_the_integration_test_runs_on_a_real_kafka(kafka: KafkaServer) -> None:
    async with asyncio.timeout(60):
        await integration_test(kafka.url)


def test_every_example_is_run_and_listed() -> None:
    there = {path.name for path in FOLDER.glob("[!_]*") if path.suffix == ".py" or path.is_dir()}
    assert there == {*SAYS, *ELSEWHERE}
    listed = (FOLDER / "README.md").read_text()
    assert all(f"]({name})" in listed for name in there)


@pytest.mark.timeout(300)
def test_the_simulation_shows_the_wrong_handler_and_passes_the_right_one() -> None:
    told = subprocess.run(
        [sys.executable, FOLDER / "simulation.py"], capture_output=True, text=True, check=True, timeout=290
    ).stdout
    assert "AssertionError: an order was charged twice" in told
    assert "200 histories on the model of kafka" in told


@pytest.mark.timeout(300)
def test_the_simulation_shows_both_wrong_outboxes_and_passes_the_right_one() -> None:
    told = subprocess.run(
        [sys.executable, FOLDER / "simulation_outbox.py"],
        capture_output=True,
        text=True,
        check=True,
        timeout=290,
    ).stdout
    lost, phantom, passed = told.split(" histories on the model of redis")[1:]
    assert "is there, and nobody was told" in lost
    assert "was announced, and is not there" in phantom
    assert all(len(re.findall(r"^ +[\d.]+ s ", history, re.MULTILINE)) <= 18 for history in (lost, phantom))
    assert "failed" not in passed
