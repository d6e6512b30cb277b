"""A topic that somebody removes while somebody else makes what belongs to it: an outage, and no mistake of anybody's."""

from typing import Any

import pytest

pytest.importorskip("pika")

from pika.spec import Exchange

from things_kit import Broker
from things_kit.engine.driver import ConnectionLost


async def test_while_a_group_is_declared(broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A soak that deletes topics found a consumer that had ended by it."""
    driver: Any = broker.transmission.driver
    admin = driver._admin
    counts = admin.counts

    async def removed(queue: str) -> Any:
        await admin.ask("removing it", Exchange.Delete(exchange=topic))
        return await counts(queue)

    with monkeypatch.context() as patched:
        patched.setattr(admin, "counts", removed)
        with pytest.raises(ConnectionLost, match="was removed while"):
            await driver.declare(topic, ["g"])
    await driver.declare(topic, ["g"])
    assert await admin.counts(f"g.{topic}") is not None
