"""What mypy and pyright, both strict, accept of decorators and of `app.get`, and what they refuse."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.messaging.test_topic_typing import lines_refused, mypy, pyright

ACCEPTED = """\
import msgspec
from typing import Annotated
from things_kit import App, Broker, Handler, Message, Producer, Topic, module
from things_kit.modules import config, kafka


class Order(msgspec.Struct):
    id: str


class Invoice(msgspec.Struct):
    order: str


class Database: ...


orders = Topic("orders", Order, key="id")
invoices = Topic("invoices", Invoice, key="order")
app = App(config.module, kafka.module)
billing = module("billing")


@app.on(orders, group="billing", concurrency=8, publish=invoices)
async def bill(order: Order, database: Database) -> Invoice:
    return Invoice(order.id)


@app.on(orders, group="audit")
def audit(message: Message) -> None: ...


@app.on("plain", group="audit")
def plain(payload: bytes, database: Database) -> None: ...


class Bills:
    @billing.on(orders, group="g")
    async def bill(self, order: Order, database: Database) -> None: ...

    @billing.on(orders, group="h")
    async def raw(self, message: Message) -> None: ...


async def main() -> None:
    producer = await app.get(Producer)
    await producer.publish(orders, Order("1"))
    broker: Broker = await app.get(Annotated[Broker, "kafka"])
    handler = await app.get(Handler)
    await handler.handle(Message("t", b""))
    await bill(Order("1"), Database())
    broker.consumer("orders", group="g", handler=audit, concurrency=8)
"""

REFUSED = """\
from accepted import Invoice, Order, app, orders
@app.on(orders, group="billing")  # refused
async def another(invoice: Invoice) -> None: ...
@app.on(orders, group="billing", concurency=8)  # refused
async def spelt(order: Order) -> None: ...
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_type_checker_accepts_what_is_right_and_refuses_what_is_wrong(
    checker: Callable[..., str], tmp_path: Path, mypy_cache: Path
) -> None:
    (tmp_path / "cache").symlink_to(mypy_cache)
    (tmp_path / "accepted.py").write_text(ACCEPTED)
    (tmp_path / "refused.py").write_text(REFUSED)
    output = checker(tmp_path, "accepted.py", "refused.py")
    assert not lines_refused(output, "accepted.py"), output
    wrong = {number for number, line in enumerate(REFUSED.splitlines(), 1) if "# refused" in line}
    assert lines_refused(output, "refused.py") == wrong, output
