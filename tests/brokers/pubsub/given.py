"""What the tests of Pub/Sub's parts are given."""

from datetime import UTC, datetime

import pytest

pytest.importorskip("google.pubsub_v1")


from things_kit.brokers.pubsub.options import Settings
from things_kit.engine.url import BrokerURL

NOW = datetime(2026, 11, 23, 18, 40, 7, 369139, tzinfo=UTC)


def settings(query: str = "", project: str = "my-project") -> Settings:
    return Settings.from_url(
        BrokerURL.parse(f"pubsub://{project}?{query}" if query else f"pubsub://{project}")
    )
