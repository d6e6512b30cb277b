"""Large values in S3, as an emulator of AWS has it."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from aiobotocore.session import get_session

from things_kit import Message
from things_kit.engine.transforming import apply, undoing
from things_kit.middleware import claim_check
from things_kit.middleware.s3_store import S3Store
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.sqs import REGION, SQSServer


class AWS(SQSServer):
    """The same emulator, with S3."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **{**more, "settings": {"SERVICES": "s3,sqs,sns"}})


emulator = shared(AWS, "s3")


@pytest.fixture
async def url(emulator: SQSServer) -> AsyncIterator[str]:
    login = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with patch.dict(os.environ, login):
        session: Any = get_session()
        async with session.create_client("s3", endpoint_url=emulator.endpoint, region_name=REGION) as client:
            await client.create_bucket(Bucket="claims")
        yield f"s3://claims/orders?endpoint={emulator.endpoint}&region={REGION}"


async def test_a_value_is_kept_in_s3_and_goes_by_age(url: str) -> None:
    transforms = [claim_check(url, above=10)]
    sent = await apply(transforms, Message("orders", b"x" * 300_000, id="m-1"), 10)
    assert len(sent.value) < 250
    undo = undoing(transforms, {})
    assert undo is not None
    assert (await undo(sent)).value == b"x" * 300_000

    store = S3Store(url)
    old = f"{datetime.now(UTC) - timedelta(days=40):%Y-%m-%d}/{'0' * 32}"
    young = f"{datetime.now(UTC) - timedelta(days=2):%Y-%m-%d}/{'0' * 32}"
    await asyncio.gather(store.put(old, b"old"), store.put(young, b"young"))
    await store.sweep(datetime.now(UTC) - timedelta(days=30))
    assert await store.get(old) is None
    assert await store.get(young) == b"young"
