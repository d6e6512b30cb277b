"""What a broker's section of the configuration says: where the broker is, and how one consumer consumes."""

import builtins
from collections.abc import Collection, Mapping, Sequence
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Self,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
)
from urllib.parse import quote, urlencode

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ImportString,
    SecretStr,
    create_model,
    model_validator,
)

from things_kit.engine.options import ARGUMENTS, ConsumerOptions, SectionArguments
from things_kit.messaging.policy import DISCARD, Batch, RetryPolicy

LATER: Final = ConfigDict(defer_build=True)
"""What checks a section is built when one is read: an app pays for its own broker, not for all it imports."""


def _split(names: object) -> object:
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names


Names: TypeAlias = Annotated[
    tuple[str, ...], BeforeValidator(_split, json_schema_input_type=tuple[str, ...] | str)
]
"""A list, or its items with commas between them, or one alone."""

Said: TypeAlias = Annotated[str, Field(min_length=1)]


def fields(kind: type[msgspec.Struct], but: Collection[str] = (), **forms: Any) -> dict[str, Any]:
    """The fields of one of the engine's own structs as those of a section, with the same types, bounds and defaults.

    `forms` are the types of those that a file writes in another way.
    """
    return {
        field.name: _field(field, forms.get(field.name))
        for field in msgspec.structs.fields(kind)
        if field.name not in but
    }


def _field(field: msgspec.structs.FieldInfo, form: Any) -> tuple[Any, Any]:
    kind, meta = field.type, msgspec.Meta()
    if get_origin(kind) is Annotated:
        kind, meta = get_args(kind)
    if form is None:
        bounds = Field(ge=meta.ge, gt=meta.gt, le=meta.le)
        kinds = get_args(kind) if get_origin(kind) in {Union, UnionType} else (kind,)
        bounded = tuple(Annotated[each, bounds] if each in {int, float} else each for each in kinds)
        form = Union[bounded]  # noqa: UP007 - of as many as there are
    if isinstance(form, type) and issubclass(form, BaseModel):
        return form, Field(default=form(), description=meta.description)
    default = list(field.default) if get_origin(form) is list else field.default
    return form, Field(default=default, description=meta.description)


def _built_in(name: object) -> object:
    """Where an exception's plain name is to be imported from."""
    return f"builtins.{name}" if isinstance(name, str) and hasattr(builtins, name) else name


class _Retry(BaseModel):
    model_config = LATER

    def policy(self) -> RetryPolicy:
        """The policy that they say."""
        said = dict(self)
        return RetryPolicy(**{**said, "permanent": tuple(said["permanent"])})


class _Batch(BaseModel):
    model_config = LATER

    def batch(self) -> Batch:
        """The batch that they say."""
        return Batch(**dict(self))


class _Consumed(BaseModel):
    """What is consumed; the arguments of `broker.consumer` come beside it. `group` is another word for `group_id`."""

    model_config = LATER

    topic: Said | None = None
    topics: Annotated[list[Said], BeforeValidator(_split, json_schema_input_type=list[Said] | Said)] = []
    group_id: Said | None = Field(
        default=None, description="Must be said: null is a group of its own from now on, gone when it stops."
    )
    group: Said | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.topic is not None and self.topics:
            raise ValueError("topic and topics are both given: expected one of them")
        if {"group", "group_id"} <= self.model_fields_set:
            raise ValueError("group and group_id are both given: expected one of them")
        return self

    def consumed(self) -> list[str]:
        """The topics; none where the section does not say."""
        return [self.topic] if self.topic is not None else self.topics

    def arguments(self) -> SectionArguments:
        """What the section says, for `broker.consumer`; without a group where it says none."""
        said = {field.name: getattr(self, field.name) for field in ARGUMENTS if field.name != "group"}
        if said["dead_letter"] == DISCARD.value:
            said["dead_letter"] = DISCARD
        said["retry"] = said["retry"].policy()
        said["batch"] = None if said["batch"] is None else said["batch"].batch()
        said["middleware"] = tuple(said["middleware"])
        said["transforms"] = tuple(said["transforms"])
        arguments = cast("SectionArguments", said)
        if {"group", "group_id"} & self.model_fields_set:
            arguments["group"] = self.group if self.group_id is None else self.group_id
        return arguments


if TYPE_CHECKING:
    ConsumerSettings: TypeAlias = _Consumed
else:
    PERMANENT: Final = list[Annotated[ImportString[type[BaseException]], BeforeValidator(_built_in)]]
    """Exceptions by their dotted names, built-in ones by their plain names."""

    RetrySettings = create_model("RetrySettings", __base__=_Retry, **fields(RetryPolicy, permanent=PERMANENT))
    BatchSettings = create_model("BatchSettings", __base__=_Batch, **fields(Batch))
    ConsumerSettings = create_model(
        "ConsumerSettings",
        __base__=_Consumed,
        **fields(
            ConsumerOptions,
            but=("topics", "handler", "contracts", "group"),
            retry=RetrySettings,
            batch=BatchSettings | None,
            dead_letter=Said | None,
            middleware=list[ImportString[Any]],
            transforms=list[ImportString[Any]],
            publish=ImportString[Any] | None,
        ),
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

    @classmethod
    def left_of(cls, file: Mapping[str, Any], environment: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of the file still counts: one word for the same thing replaces the others."""
        void = {
            name
            for words in (("url", cls.own), ("topic", "topics"), ("group", "group_id"))
            if not environment.keys().isdisjoint(words)
            for name in words
        }
        if "@" in str(environment.get("url")):
            void |= {"username", "password"}
        return {name: value for name, value in file.items() if name not in void}

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
