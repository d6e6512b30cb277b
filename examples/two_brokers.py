"""An app with two brokers: orders come from SQLite, and bills go to another, in memory."""

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Annotated

from things_kit import App, Message, Producer, provide
from things_kit.modules import config, memory, sqlite
from things_kit.testing import MockHandler

CONFIG = """
sqlite: {path: orders.db, group_id: billing}
memory: {name: bills, group_id: accounts}
"""


class Billing:
    """Makes a bill of every order."""

    def __init__(self, bills: Annotated[Producer, "memory"]) -> None:
        self.bills = bills

    async def handle(self, message: Message) -> None:
        await self.bills.publish(Message("bills", b"bill of " + message.value, key=message.key))


async def main() -> None:
    accounts = MockHandler()
    app = App(
        config.module,
        sqlite.module,
        memory.module,
        provide(Billing),
        sqlite.consume("orders", handler=Billing),
        memory.consume("bills", handler=accounts),
    )
    async with app:
        orders: Producer = await app.get(Annotated[Producer, "sqlite"])
        await orders.publish(Message("orders", b"o-1", key=b"o-1"))
        (bill,) = await accounts.handled(1)
        print(bill.value.decode())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("config.yaml").write_text(CONFIG)
        asyncio.run(main())
