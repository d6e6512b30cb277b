"""Large values in S3, or what speaks its language."""

from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from things_kit.messaging.errors import ConfigError

_OPTIONS: Final = ("endpoint", "region")


class S3Store:
    """`s3://bucket/prefix?region=eu-west-1&endpoint=http://...`; credentials come from the usual chain of AWS.

    Raises ConfigError for a URL that is none, or where the extra `s3` is not installed.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise ConfigError(f"claim_check takes an URL such as s3://bucket/prefix; it was given {url!r}")
        options = dict(parse_qsl(parts.query))
        unknown = next((name for name in options if name not in _OPTIONS), None)
        if unknown is not None:
            raise ConfigError(f"s3:// has no option {unknown!r}; known are {', '.join(_OPTIONS)}")
        try:
            from aiobotocore.session import get_session  # noqa: PLC0415 - an extra
        except ImportError:
            raise ConfigError('aiobotocore is not installed: pip install "things-kit[s3]"') from None
        self._bucket = parts.netloc
        self._prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        self._session: Any = get_session()
        self._where = {"endpoint_url": options.get("endpoint"), "region_name": options.get("region")}

    def _client(self) -> Any:
        """One for each call: values are large and few, and nothing is left open in a loop that has ended."""
        return self._session.create_client("s3", **self._where)

    async def put(self, key: str, value: bytes, /) -> None:
        """Upload it."""
        async with self._client() as client:
            await client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=value)

    async def get(self, key: str, /) -> bytes | None:
        """Download it; None where it is not there."""
        async with self._client() as client:
            try:
                answer = await client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            except client.exceptions.NoSuchKey:
                return None
            async with answer["Body"] as body:
                value: bytes = await body.read()
                return value

    async def sweep(self, before: datetime, /) -> None:
        """Delete what lies under earlier days; a lifecycle rule of the bucket does it cheaper."""
        first_kept = f"{self._prefix}{before:%Y-%m-%d}"
        async with self._client() as client:
            pages = client.get_paginator("list_objects_v2")
            async for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                old = [{"Key": each["Key"]} for each in page.get("Contents", ()) if each["Key"] < first_kept]
                if old:
                    await client.delete_objects(Bucket=self._bucket, Delete={"Objects": old})
                if len(old) < len(page.get("Contents", ())):
                    return  # they are in the order of their days
