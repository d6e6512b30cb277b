"""What `things_kit` promises to those who import it."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import things_kit
from things_kit import (
    DISCARD,
    Batch,
    BatchError,
    Broker,
    Consumer,
    Handle,
    Handler,
    Message,
    MessageRouter,
    Middleware,
    Producer,
    Reject,
    Retry,
    RetryPolicy,
    connect,
    middleware,
)

PROMISED = [
    "App", "DISCARD", "Batch", "BatchError", "Broker", "BrokerUnavailable", "Capabilities", "ClosedError", "ConfigError",
    "Consumer", "ConsumerHealth", "DecodeError", "Handle", "Handler", "Health", "Hook", "Lifecycle", "Message",
    "MessageRouter", "MessageTooLarge", "Middleware", "NobodyListens", "Producer", "PublishError", "Reject", "Retry", "RetryPolicy", "Schedule", "ThingsKitError", "Topic",
    "UnroutableError", "UnsupportedError", "WiringError", "connect", "invoke", "module", "provide",
]  # fmt: skip


@pytest.mark.parametrize("name", PROMISED)
def test_a_promised_name_is_there(name: str) -> None:
    assert getattr(things_kit, name) is not None
    assert name in things_kit.__all__
    assert name in dir(things_kit)


def test_all_names_are_there_and_in_order() -> None:
    for name in things_kit.__all__:
        assert getattr(things_kit, name) is not None
    assert things_kit.__all__ == sorted(set(things_kit.__all__))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'things_kit' has no attribute 'Kafka'"):
        things_kit.Kafka  # noqa: B018


@pytest.mark.parametrize("name", PROMISED)
def test_everything_public_says_what_it_is(name: str) -> None:
    if name not in {"DISCARD", "Handle", "Middleware"}:
        assert getattr(things_kit, name).__doc__


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has after this code, and not before."""
    program = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


CLIENTS = {
    "fastavro",
    "confluent_kafka",
    "pika",
    "nats",
    "redis",
    "aiobotocore",
    "botocore",
    "google",
    "azure",
    "sqlite3",
    "asyncpg",
}

APP = {"pydantic_settings", "structlog", "uvloop", "yaml"}


def test_importing_the_kit_imports_nothing_heavy() -> None:
    modules = modules_after("import things_kit")
    assert not modules & {"asyncio", "msgspec", "typer", "rich", "pydantic", "pytest", *APP, *CLIENTS}


def test_the_contracts_need_no_event_loop() -> None:
    modules = modules_after(
        "from things_kit import Message, Handler, RetryPolicy, Retry, Reject, BatchError, DISCARD, Batch"
    )
    assert not modules & {"asyncio", "pydantic", *CLIENTS}
    assert not [name for name in modules if name.startswith(("things_kit.engine", "things_kit.brokers"))]


def test_connecting_imports_no_client_but_the_one_asked_for() -> None:
    modules = modules_after("import things_kit; things_kit.connect('memory://')")
    assert not modules & {"pydantic", "typer", "rich", *APP, *CLIENTS}


def test_describing_an_app_imports_nothing_that_only_running_one_needs() -> None:
    modules = modules_after(
        "from things_kit import App, Hook, Lifecycle, invoke, module, provide; App(module('m'))"
    )
    assert not modules & {"pydantic", "typer", "rich", *APP, *CLIENTS}
    assert not [name for name in modules if name.startswith(("things_kit.engine", "things_kit.messaging"))]


# --- what mypy has to agree with


class Counting:
    """A handler."""

    def __init__(self) -> None:
        self.count = 0

    async def handle(self, message: Message) -> None:
        self.count += 1


def logged(handle: Handle) -> Handle:
    async def wrapped(message: Message) -> None:
        await handle(message)

    return wrapped


async def publish_all(producer: Producer, messages: Sequence[Message]) -> None:
    await producer.publish_batch(messages)


async def run_through(consumer: Consumer) -> None:
    await consumer.start()
    await consumer.stop()


async def test_what_is_made_satisfies_the_contracts() -> None:
    handler: Handler = Counting()
    middleware: Middleware = logged
    router = MessageRouter()
    router.register("a", handler)
    broker: Broker
    async with connect("memory://") as broker:
        await publish_all(broker.producer(), [Message("t", b"")])
        await run_through(
            broker.consumer(
                ["t"],
                group="g",
                handler=router,
                retry=RetryPolicy(permanent=(Reject, Retry)),
                dead_letter=DISCARD,
                middleware=[middleware],
            )
        )
        await run_through(broker.consumer("t", group=None, handler=lambda messages: None, batch=Batch()))
        assert isinstance(broker.producer(), Producer)
        assert isinstance(broker.consumer("t", group=None, handler=handler), Consumer)
    assert isinstance(router, Handler)
    assert BatchError({}).errors == {}


def test_a_topic_imports_no_codec_but_its_own() -> None:
    modules = modules_after("import things_kit; import things_kit.codecs; things_kit.Topic('t', dict)")
    assert not modules & {"pydantic", "typer", "rich", *APP, *CLIENTS}
    assert "things_kit.codecs.message_pack" not in modules


def test_the_reference_has_every_name_of_middleware() -> None:
    reference = Path(__file__).parent.parent.joinpath("docs/api.md").read_text(encoding="utf-8")
    described = {line.rpartition(".")[2] for line in reference.splitlines() if line.startswith(":::")}
    assert not set(middleware.__all__) - described
