"""The client of one driver: two channels, more of them for large batches, and the login for them."""

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import google.auth
import grpc
from google.api_core import exceptions, grpc_helpers_async
from google.api_core.retry import AsyncRetry, if_exception_type
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.oauth2 import service_account
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport

from things_kit.brokers.pubsub.channel import Channel
from things_kit.brokers.pubsub.errors import ERRORS
from things_kit.brokers.pubsub.options import Settings
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError

CHANNEL: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A channel of our own connection: those of others in this process may be waiting after a failure
    ("grpc.use_local_subchannel_pool", 1),
    # By default a second at first, then up to two minutes; the engine waits by itself
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

_ServiceAccount: Final[Any] = service_account.Credentials

BRIEFLY: Final = AsyncRetry(
    predicate=if_exception_type(
        exceptions.Aborted, exceptions.InternalServerError, exceptions.ServiceUnavailable
    ),
    initial=0.05,
    maximum=0.5,
    timeout=2.0,
)
"""For calls that may be repeated: the service closes a connection now and then, and takes the next one."""


class Connection:
    """Calls go over one channel, streams over another, so that many streams leave room for acknowledgements.

    Google's high-level client has a thread for each subscription and one for each message; the clients used here are
    the same package's own for asyncio.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._make: Callable[[], grpc.aio.Channel]
        self._open: tuple[Channel, Channel] | None = None
        self._more: list[Channel] = []

    async def open(self) -> None:
        """Log in and make the channels; nothing is called yet.

        Raises:
            ConfigError: There are no credentials, or their file is none.
        """
        credentials = None if self._settings.plain else await asyncio.to_thread(self._credentials)
        self._make = functools.partial(self._channel, credentials)
        self._open = Channel(self._make), Channel(self._make)

    async def close(self) -> None:
        """Close both, and forget the clients: gRPC ends its thread with the last channel."""
        channels, self._open = [*(self._open or ()), *self._more], None
        self._more = []
        for channel in channels:
            await channel.close()

    @property
    def publisher(self) -> PublisherAsyncClient:
        """For calls about topics; within `during`."""
        return self._channels[0].publisher

    @property
    def subscriber(self) -> SubscriberAsyncClient:
        """For calls about subscriptions; within `during`."""
        return self._channels[0].subscriber

    def calls(self, number: int) -> Channel:
        """One of several channels for calls, of which the first is there, and the others once they are asked for.

        The service takes about a hundred calls at a time over each. Raises ConnectionLost after `close`.
        """
        first, _ = self._channels
        if not number:
            return first
        while len(self._more) < number:
            self._more.append(Channel(self._make))
        return self._more[number - 1]

    @property
    def streams(self) -> Channel:
        """For streams."""
        return self._channels[1]

    @property
    def _channels(self) -> tuple[Channel, Channel]:
        if self._open is None:
            raise ConnectionLost("the broker was closed")
        return self._open

    @contextmanager
    def during(
        self, doing: str, *, through: tuple[type[Exception], ...] = (), over: Channel | None = None
    ) -> Iterator[None]:
        """For calls, over the first channel or this one: what they raise is ours, but for a cancellation and what is to go `through`."""
        with (over or self._channels[0]).waiting(), ERRORS.during(doing, through=through):
            yield

    def _channel(self, credentials: Credentials | None) -> grpc.aio.Channel:
        settings = self._settings
        if settings.plain:
            return grpc.aio.insecure_channel(settings.host, options=CHANNEL)
        tls = grpc.ssl_channel_credentials(self._ca())
        if credentials is None:
            return grpc.aio.secure_channel(settings.host, tls, options=CHANNEL)
        return grpc_helpers_async.create_channel(
            settings.host, credentials=credentials, ssl_credentials=tls, options=CHANNEL
        )

    def _ca(self) -> bytes | None:
        path = self._settings.options.ca
        try:
            return Path(path).read_bytes() if path else None
        except OSError as error:
            raise ConfigError(
                f"{self._settings.url.display}: option 'ca': cannot read {path}: {error.strerror}"
            ) from error

    def _credentials(self) -> Credentials | None:
        """What signs our calls; None for an endpoint with TLS alone. Blocks, perhaps for seconds."""
        settings, scopes = self._settings, PublisherGrpcAsyncIOTransport.AUTH_SCOPES
        path = settings.options.credentials
        if path is None and settings.options.endpoint:
            return None
        if path is not None:
            return _service_account(settings, path, scopes)
        try:
            found: Any = google.auth.default(scopes=scopes)[0]
        except GoogleAuthError as error:
            raise ConfigError(
                f"{settings.url.display}: no Google credentials were found: give ?credentials=FILE, set "
                "GOOGLE_APPLICATION_CREDENTIALS, or give ?endpoint=HOST:PORT for an emulator"
            ) from error
        return _signing_itself(found)


def _service_account(settings: Settings, path: str, scopes: Any) -> Credentials:
    what = f"{settings.url.display}: option 'credentials'"
    try:
        made: Any = _ServiceAccount.from_service_account_file(path, scopes=scopes)
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {path}: {error.strerror}") from error
    except (ValueError, GoogleAuthError):  # whose text may have parts of the key
        raise ConfigError(f"{what}: {path} is not the JSON key file of a service account") from None
    return _signing_itself(made)


def _signing_itself(credentials: Any) -> Credentials:
    """A service account's key signs its tokens here, so there is no server to ask for one."""
    if isinstance(credentials, _ServiceAccount):
        credentials = credentials.with_always_use_jwt_access(True)
    return credentials  # type: ignore[no-any-return] # google-auth's functions have no annotations
