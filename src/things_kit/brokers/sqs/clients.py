"""The clients of SQS and SNS, and where they have their credentials from."""

import functools
from contextlib import AsyncExitStack
from typing import Any, Final

from aiobotocore.session import AioSession, get_session
from botocore.exceptions import BotoCoreError, ConnectTimeoutError, EndpointConnectionError
from botocore.loaders import Loader, create_loader

from things_kit.brokers.sqs.errors import ERRORS
from things_kit.brokers.sqs.options import Settings
from things_kit.messaging.errors import ConfigError

NOBODY: Final = "things-kit"
"""The access key for an emulator on this machine, if nobody has set one: emulators want some, and ask no more."""

DESCRIPTIONS: Final = (
    ("sqs", "service-2"), ("sqs", "endpoint-rule-set-1"), ("sns", "service-2"), ("sns", "endpoint-rule-set-1"),
)  # fmt: skip
"""What botocore reads before it makes our clients."""


@functools.cache
def _descriptions() -> Loader:
    """Read once in a process, and before a broker is opened: it takes longer than some wait for a broker."""
    loader = create_loader(AioSession().get_config_variable("data_path"))
    for service, kind in DESCRIPTIONS:
        loader.load_service_model(service, kind)
    for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
        loader.load_data(name)
    return loader


def _said_at_once(caught_exception: Exception | None = None, **_: object) -> None:
    """A broker that is not there is asked again by the engine, which says why; the client would keep that for seconds."""
    if isinstance(caught_exception, (EndpointConnectionError, ConnectTimeoutError)):
        raise caught_exception


class Clients:
    """The two clients, open between `open` and `close`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack: AsyncExitStack | None = None
        self.sqs: Any = None
        self.sns: Any = None
        self._loader = _descriptions()

    @property
    def is_open(self) -> bool:
        """Whether there are clients to ask."""
        return self._stack is not None

    async def open(self) -> None:
        """Make the clients. Nothing is sent to SQS or SNS, but perhaps to who gives credentials.

        Raises:
            ConfigError: There is no such profile, no region, or there are no credentials.
        """
        stack = AsyncExitStack()
        try:
            options = await self._common()
            session = self._session()
            for service in ("sqs", "sns"):
                client = await stack.enter_async_context(session.create_client(service, **options))
                setattr(self, service, client)
            self.sqs.meta.events.register_first("needs-retry.sqs.ListQueues", _said_at_once)
        except (BotoCoreError, ValueError, OSError) as error:
            await stack.aclose()
            raise ERRORS.translate(error, f"{self._settings.url.display}: making its clients") from error
        except BaseException:
            await stack.aclose()
            raise
        self._stack = stack

    async def close(self) -> None:
        """Close them, with their connections."""
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    def _session(self) -> AioSession:
        session = get_session()
        session.set_config_variable("profile", self._settings.options.profile)
        session.register_component("data_loader", self._loader)
        if self._settings.local:  # no virtual machine of AWS speaks to an emulator: do not look for its role
            session.set_config_variable("metadata_service_timeout", 0.1)
        return session

    async def _common(self) -> dict[str, Any]:
        """What both clients are made with."""
        settings = self._settings
        common: dict[str, Any] = {
            "region_name": settings.region,
            "endpoint_url": settings.options.endpoint,
            "config": settings.client(),
        }
        if settings.plain:
            common["verify"] = False  # else the client reads all certificates of the system, in a thread
        elif settings.options.ca is not None:
            common["verify"] = settings.options.ca
        if await self._session().get_credentials() is None:
            if not settings.local:
                raise ConfigError(
                    f"{settings.url.display}: there are no AWS credentials: set AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, name a profile (?profile=...), or give this machine a role"
                )
            common |= {"aws_access_key_id": NOBODY, "aws_secret_access_key": NOBODY}
        return common
