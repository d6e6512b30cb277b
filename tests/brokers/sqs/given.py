"""What the tests of SQS's parts are given."""

from datetime import UTC, datetime

import pytest

pytest.importorskip("aiobotocore")

from botocore.exceptions import ClientError

from things_kit.brokers.sqs.options import Settings
from things_kit.engine.url import BrokerURL

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def settings(query: str = "") -> Settings:
    return Settings.from_url(BrokerURL.parse(f"sqs://us-east-1?{query}" if query else "sqs://us-east-1"))


def refusal(code: str, said: str = "no", status: int = 400) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": said}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Publish"
    )
