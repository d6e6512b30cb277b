"""What mypy and pyright, both strict, accept of topics and what they refuse."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)  # each reads a whole package, on whatever machine this is
SOURCE = Path(__file__).parent.parent.parent / "src"

ACCEPTED = """\
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from things_kit import Batch, Broker, Message, MessageRouter, Producer, Topic
from things_kit.middleware import MemoryStore, circuit_breaker, claim_check, compress, deduplicate, encrypt, throttle


class Order(msgspec.Struct):
    id: str
    total: float


class Created(msgspec.Struct):
    id: str


class Cancelled(msgspec.Struct):
    id: str


class Invoice(msgspec.Struct):
    id: str

orders = Topic("orders", Order)
orders2 = Topic("orders", Order, key="id")
orders3 = Topic("orders", Order, key=lambda order: order.id, headers={"source": "shop"})
invoices = Topic("invoices", Invoice)
shop = Topic[Created | Cancelled]("shop", {"order.created": Created, "order.cancelled": Cancelled}, by="type")
annotated: Topic[Created | Cancelled] = Topic("shop", {"order.created": Created, "order.cancelled": Cancelled}, by="type")
many = Topic("many", list[Order])

async def bill(order: Order) -> Invoice: return Invoice(order.id)
async def bill2(order: Order, message: Message) -> None: ...
def plain(order: Order) -> None: ...
async def wider(order: object) -> None: ...
async def union(order: Order | Created) -> None: ...
async def whole(message: Message) -> None: ...
async def raw(value: bytes) -> None: ...
async def text(value: str) -> None: ...
async def values(value: dict[str, Any]) -> None: ...
async def values2(value: dict[str, object]) -> None: ...
async def batch(value: list[Order]) -> None: ...
async def batch2(value: list[Message]) -> None: ...
async def event(value: Created | Cancelled) -> None: ...
class H:
    async def handle(self, message: Message) -> None: ...
class H2:
    async def handle(self, order: Order) -> None: ...

router = MessageRouter.of(shop)
@router.on(Created)
async def created(event: Created) -> None: ...
@router.on(Cancelled)
async def cancelled(event: Cancelled, message: Message) -> None: ...

class Session: ...
async def injected(order: Order, session: Session) -> None: ...
flow = [deduplicate(MemoryStore()), circuit_breaker(), throttle(5)]
chain = [compress("gzip"), encrypt({"a": b"k" * 32}), claim_check(Path("claims"))]
sealed = Topic("sealed", Order, transforms=(compress("gzip"), encrypt({"a": b"k" * 32})))

async def main(producer: Producer, broker: Broker) -> None:
    invoice: Invoice = await broker.request(orders, Order("a", 1.0), reply=Invoice, timeout=5)
    reply: Message = await broker.request(Message("a", b""), timeout=timedelta(seconds=5))
    number: int = await broker.request(Message("a", b""), reply=int)
    await producer.publish(orders, Order("a", 1.0), after=60)
    await producer.publish(Message("a", b""), at=datetime.now(UTC), schedule_id="a")
    assert invoice and reply and number
    broker.consumer(orders, group="g", handler=injected)
    broker.consumer(orders, group="g", handler=bill, transforms=chain)
    broker.consumer(sealed, group="g", handler=bill, middleware=[throttle(5), circuit_breaker()])
    broker.consumer(sealed, group="g", handler=bill, middleware=flow)
    broker.producer(transforms=chain)
    await producer.publish(orders, Order("a", 1.0))
    await producer.publish(orders, Order("a", 1.0), key="k", headers={"a": "b"}, id="x")
    await producer.publish(Message("a", b""))
    await producer.publish(message=Message("a", b""))
    await producer.publish_batch(orders.messages([Order("a", 1.0)]))
    await producer.publish(shop, Created("x"))
    message: Message = orders.message(Order("a", 1.0), key=None)
    broker.consumer(orders, group="g", handler=bill, publish=invoices)
    broker.consumer(orders, group="g", handler=bill2)
    broker.consumer(orders, group="g", handler=plain)
    broker.consumer(orders, group="g", handler=wider)
    broker.consumer(orders, group="g", handler=union)
    broker.consumer(orders, group="g", handler=whole)
    broker.consumer(orders, group="g", handler=raw)
    broker.consumer(orders, group="g", handler=text)
    broker.consumer(orders, group="g", handler=values)
    broker.consumer(orders, group="g", handler=values2)
    broker.consumer(orders, group="g", handler=H())
    broker.consumer(orders, group="g", handler=H2())
    broker.consumer(orders, group="g", handler=batch, batch=Batch())
    broker.consumer(orders, group="g", handler=batch2, batch=Batch())
    broker.consumer(shop, group="g", handler=event)
    broker.consumer(shop, group="g", handler=router)
    broker.consumer(["a", orders], group="g", handler=bill)
    broker.consumer([orders, shop], group="g", handler=bill)
    broker.consumer("a", group="g", handler=bill)
    broker.consumer(orders.renamed("orders-dlq"), group="g", handler=bill)
    await broker.declare(orders)
    await broker.lag(orders, "g")
    await broker.remove(orders)
    await broker.replay("x", to=orders)
    assert message
"""

REFUSED = """\
from accepted import Cancelled, Created, Order, batch, bill, created, orders, router, shop
from things_kit import Batch, Broker, Message, Producer, Topic


async def main2(producer: Producer, broker: Broker) -> None:
    await producer.publish(orders, Created("a"))  # refused
    await producer.publish(orders)  # refused
    await producer.publish(shop, Order("a", 1))  # refused
    await producer.publish("orders", Order("a", 1))  # refused
    await producer.publish(Message("a", b""), key="x")  # refused
    orders.message(Created("x"))  # refused
    orders.messages([Created("x")])  # refused
    broker.consumer(orders, group="g", handler=created)  # refused
    broker.consumer(shop, group="g", handler=created)  # refused
    broker.consumer(orders, group="g", handler=batch)  # refused
    broker.consumer(orders, group="g", handler=bill, batch=Batch())  # refused
    broker.consumer(orders, group="g", handler=5)  # refused
    await broker.request(orders, Created("a"))  # refused
    await broker.request("orders", Order("a", 1))  # refused
    await producer.publish(orders, Order("a", 1), after="60")  # refused
    broker.producer(transforms=[5])  # refused
def wrong(order: Created) -> str: return ""
def wrong2(order: Order) -> float: return 1.0
b1 = Topic("orders", Order, key=wrong)  # refused
b2 = Topic("orders", Order, key=lambda order: order.nothing)  # refused
b3 = Topic("orders", Order, key=wrong2)  # refused
b4 = Topic[Created | Cancelled]("shop", {"a": Created, "b": Order}, by="type")  # refused
b6 = Topic[Created]("shop", Order)  # refused
@router.on(Created)  # refused
async def created2(event: Cancelled) -> None: ...
"""


def check(command: Sequence[str], folder: Path) -> str:
    environment = {**os.environ, "MYPYPATH": f"{SOURCE}:{folder}", "COLUMNS": "300"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=290, check=False, cwd=folder, env=environment
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout


BARE = """\
import msgspec

from things_kit import Topic


class A(msgspec.Struct): ...


class B(msgspec.Struct): ...


shop = Topic("shop", {"a": A, "b": B}, by="type")
reveal_type(shop)
"""


def mypy(folder: Path, *files: str) -> str:
    cache = str(folder / "cache")
    return check([sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, *files], folder)


def pyright(folder: Path, *files: str) -> str:
    pytest.importorskip("pyright", reason="pyright is not installed")
    (folder / "pyrightconfig.json").write_text(
        f'{{"typeCheckingMode": "strict", "extraPaths": ["{SOURCE}"], "reportWildcardImportFromLibrary": false}}'
    )
    return check([sys.executable, "-m", "pyright", "--pythonpath", sys.executable, *files], folder)


def lines_refused(output: str, file: str) -> set[int]:
    return {int(line) for line in re.findall(rf"{file}:(\d+):.*error", output)}


@pytest.fixture
def snippets(tmp_path: Path, mypy_cache: Path) -> Path:
    (tmp_path / "cache").symlink_to(mypy_cache)
    (tmp_path / "accepted.py").write_text(ACCEPTED)
    (tmp_path / "refused.py").write_text(REFUSED)
    (tmp_path / "bare.py").write_text(BARE)
    return tmp_path


@pytest.mark.parametrize(
    ("checker", "inferred"), [(mypy, "Topic[msgspec.Struct]"), (pyright, "Topic[A | B]")]
)
def test_a_type_checker_accepts_what_is_right_and_refuses_what_is_wrong(
    checker: Callable[..., str], inferred: str, snippets: Path
) -> None:
    """Without brackets mypy knows of several types only what they have in common."""
    output = checker(snippets, "accepted.py", "refused.py", "bare.py")
    assert not lines_refused(output, "accepted.py"), output
    wrong = {number for number, line in enumerate(REFUSED.splitlines(), 1) if "# refused" in line}
    assert lines_refused(output, "refused.py") == wrong, output
    assert re.search(rf"bare\.py:\d+:.*{re.escape(inferred)}", output), output
