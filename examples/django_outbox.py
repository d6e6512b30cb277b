"""Django: an order and its message are one `transaction.atomic()`, on SQLite or PostgreSQL."""

import asyncio
import sys
import tempfile
from typing import Any
from urllib.parse import urlsplit

import django
import msgspec
from django.conf import settings
from django.db import close_old_connections, connection, models, transaction

from things_kit import Topic, connect
from things_kit.patterns import Outbox


class Placed(msgspec.Struct):
    """What others are told of an order."""

    id: int
    customer: str


orders = Topic("orders", Placed, key="customer")
outbox = Outbox()


def configure(url: str) -> None:
    """What a project's settings.py says, and the model that its models.py has."""
    parts = urlsplit(url)
    database: dict[str, Any] = {"ENGINE": "django.db.backends.sqlite3", "NAME": parts.path[1:]}
    if parts.scheme.startswith("postgres"):
        database |= {"ENGINE": "django.db.backends.postgresql", "HOST": parts.hostname, "PORT": parts.port}
        database |= {"USER": parts.username, "PASSWORD": parts.password}
    settings.configure(DATABASES={"default": database}, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
    django.setup()


def place(order: Any, customer: str, *, in_stock: bool = True) -> None:
    """Save the order and publish it: both, or neither."""
    with transaction.atomic():
        saved = order.objects.create(customer=customer)
        outbox.publish_sync(connection, orders, Placed(saved.pk, customer))
        if not in_stock:
            transaction.set_rollback(True)


async def bill(url: str, order: Any, count: int) -> None:
    """Handle so many orders, in the process of a management command."""
    billed = asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()

    def handle(
        placed: Placed,
    ) -> None:  # a plain function: it runs in a thread, where Django's database code belongs
        close_old_connections()
        order.objects.filter(pk=placed.id).update(billed=True)
        print(f"bill for {placed.customer}")
        connection.close()
        loop.call_soon_threadsafe(billed.release)

    async with connect(url) as broker, broker.consumer(orders, group="billing", handler=handle):
        for _ in range(count):
            await billed.acquire()


def main(url: str) -> None:
    configure(url)

    class Order(models.Model):  # type: ignore[misc] # Django has no types
        customer = models.TextField()
        billed = models.BooleanField(default=False)

        class Meta:
            app_label = "shop"

    with connection.schema_editor() as editor:  # a project has migrations: RunSQL(outbox.ddl("sqlite"))
        editor.create_model(Order)
        for statement in outbox.ddl(connection.vendor):
            editor.execute(statement)
    asyncio.run(bill(url, Order, 0))  # the first connect adds what a migration cannot
    place(Order, "ada")
    place(Order, "bob", in_stock=False)  # nobody hears of it
    place(Order, "cleo")
    connection.close()
    asyncio.run(bill(url, Order, 2))
    print("billed:", Order.objects.filter(billed=True).count(), "of", Order.objects.count())
    connection.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(*sys.argv[1:] or [f"sqlite:///{folder}/shop.db"])
