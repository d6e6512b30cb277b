"""What a broker's section of the configuration says: where the broker is, and how one consumer consumes."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias, TypedDict
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, Field, ImportString, SecretStr, model_validator

from things_kit.messaging.handler import Middleware
from things_kit.messaging.policy import DISCARD, Batch, Discard, Ordering, RetryPolicy, Seconds, Start

Duration: TypeAlias = Annotated[float, Field(ge=0)] | timedelta


LATER: Final = ConfigDict(defer_build=True)
"""What checks a section is built when one is read: an app pays for its own broker, not for all it imports."""


class RetrySettings(BaseModel):
    """The fields of `RetryPolicy`."""

    model_config = LATER

    attempts: int = Field(default=5, ge=1)
    first: Duration = 0.1
    factor: float = Field(default=2.0, ge=1)
    limit: Duration = 30.0
    jitter: float = Field(default=0.1, ge=0, le=1)
    mode: Literal["in_place", "delayed"] = "in_place"
    permanent: list[ImportString[type[BaseException]]] = Field(
        default=[], description="Exceptions for which trying again cannot help, such as shop.errors.Unknown."
    )

    def policy(self) -> RetryPolicy:
        """The policy that they say."""
        return RetryPolicy(
            self.attempts, self.first, self.factor, self.limit, self.jitter, self.mode, tuple(self.permanent)
        )


class BatchSettings(BaseModel):
    """The fields of `Batch`."""

    model_config = LATER

    size: int = Field(default=100, ge=1)
    wait: Duration = 0.05


class ConsumerArguments(TypedDict, total=False):
    """The arguments of `broker.consumer` that a section gives as well."""

    group: str | None
    concurrency: int
    ordering: Ordering
    start: Start
    retry: RetryPolicy | None
    dead_letter: str | Discard | None
    timeout: Seconds | None
    drain_timeout: Seconds
    max_in_flight: int
    batch: Batch | None
    middleware: Sequence[Middleware]


class ConsumerSettings(BaseModel):
    """Every argument of `broker.consumer` but the handler. `group` is another word for `group_id`."""

    model_config = LATER

    topic: str | None = Field(default=None, min_length=1)
    topics: list[Annotated[str, Field(min_length=1)]] = []
    group_id: str | None = Field(default=None, min_length=1)
    group: str | None = Field(default=None, min_length=1)
    concurrency: int = Field(default=1, ge=1)
    ordering: Ordering = "key"
    start: Start = "earliest"
    retry: RetrySettings = RetrySettings()
    dead_letter: str | None = Field(
        default="{topic}-dlq", description="A topic; null keeps messages for ever, and DISCARD drops them."
    )
    timeout: Annotated[float, Field(gt=0)] | timedelta | None = None
    drain_timeout: Duration = 20.0
    max_in_flight: int = Field(default=1000, ge=1)
    batch: BatchSettings | None = None
    middleware: list[ImportString[Any]] = Field(
        default=[], description="Functions from Handle to Handle, such as shop.middleware.timed."
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.topic is not None and self.topics:
            raise ValueError("topic and topics are both given: expected one of them")
        if self.group is not None and self.group_id is not None:
            raise ValueError("group and group_id are both given: expected one of them")
        return self

    def consumed(self) -> list[str]:
        """The topics; none where the section does not say."""
        return [self.topic] if self.topic is not None else self.topics

    def arguments(self) -> ConsumerArguments:
        """What the section says, for `broker.consumer`."""
        return ConsumerArguments(
            group=self.group if self.group_id is None else self.group_id,
            concurrency=self.concurrency,
            ordering=self.ordering,
            start=self.start,
            retry=self.retry.policy(),
            dead_letter=DISCARD if self.dead_letter == "DISCARD" else self.dead_letter,
            timeout=self.timeout,
            drain_timeout=self.drain_timeout,
            max_in_flight=self.max_in_flight,
            batch=None if self.batch is None else Batch(self.batch.size, self.batch.wait),
            middleware=tuple(self.middleware),
        )


class BrokerSettings(ConsumerSettings):
    """A broker's section: `url`, or the broker's own fields, and those of a consumer.

    `options` are those of the URL's query.
    """

    own: ClassVar[str]
    """The broker's own field that says where it is."""

    url: str | None = Field(default=None, repr=False)
    options: dict[str, str | int | float | bool] = Field(default={}, repr=False)

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        address = self.own_url()
        if self.url is not None and address is not None:
            raise ValueError(f"url and {self.own} are both given: expected one of them")
        if self.url is None and address is None:
            raise ValueError(f"expected `url`, or `{self.own}`")
        return self

    def own_url(self) -> str | None:
        """The URL that the broker's own fields say; None where they say none."""
        raise NotImplementedError

    def full_url(self) -> str:
        """The URL with everything that the section says beside it."""
        return with_options(self.url or self.own_url() or "", self.options)


class ServerSettings(BrokerSettings):
    """A section of a broker that one logs in to."""

    username: str | None = None
    password: SecretStr | None = None

    def full_url(self) -> str:
        """The URL with the login and the options of the section."""
        url = super().full_url()
        if self.username is None and self.password is None:
            return url
        scheme, _, rest = url.partition("://")
        before, _, after = rest.rpartition("@")
        user, _, password = before.partition(":")
        if self.username is not None:
            user = quote(self.username, safe="")
        if self.password is not None:
            password = quote(self.password.get_secret_value(), safe="")
        return f"{scheme}://{user}:{password}@{after}" if password else f"{scheme}://{user}@{after}"


def with_options(url: str, options: Mapping[str, str | int | float | bool | None]) -> str:
    """The URL with these options in its query; those that are None are left out."""
    said = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in options.items()
        if value is not None
    }
    return url if not said else f"{url}{'&' if '?' in url else '?'}{urlencode(said, quote_via=quote)}"


def at_hosts(scheme: str, hosts: Sequence[str], path: str = "") -> str | None:
    """A URL of servers; None where there are none."""
    return f"{scheme}://{','.join(quote(host, safe=':[]') for host in hosts)}{path}" if hosts else None
