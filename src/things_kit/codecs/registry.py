"""Schema registries over HTTP."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from things_kit.codecs.schemas import Answer, Away, Compatibility, Schemas
from things_kit.messaging.errors import ConfigError

SLOW: Final = 10.0
"""Seconds within which one answer must come."""

LARGEST: Final = 4 << 20
"""Bytes of the largest answer that is read."""


class Registry(Schemas):
    """A registry, such as Confluent's, Apicurio, Redpanda or Karapace, over HTTP.

    Args:
        url: Its address, or several of one registry.
        username: For basic authentication, with `password`.
        password: See `username`.
        token: For bearer authentication.
        ca: A file of certificates that are trusted, where the system's are not.
        cert: A file with our own certificate, with `key`.
        key: See `cert`.
        register: Whether schemas that it does not have are registered.
        compatibility: What is set on subjects that this creates.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        ca: str | None = None,
        cert: str | None = None,
        key: str | None = None,
        register: bool = True,
        compatibility: Compatibility | None = None,
    ) -> None:
        super().__init__(register=register, compatibility=compatibility)
        self._urls = [url] if isinstance(url, str) else list(url)
        for each in self._urls:
            if not isinstance(each, str) or not each.startswith(("http://", "https://")):
                raise ConfigError(
                    f"a registry's URL begins with http:// or https://; it is {_display(each)!r}"
                )
        if not self._urls:
            raise ConfigError("a registry needs a URL")
        if token is not None and username is not None:
            raise ConfigError("a registry takes username= and password=, or token=, not both")
        if key is not None and cert is None:
            raise ConfigError("a registry's key= needs cert=, the certificate that it is for")
        self._login = (username, password or "") if username is not None else None
        self._token = token
        self._files = ca, cert, key

    def __repr__(self) -> str:
        return f"<Registry {', '.join(map(_display, self._urls))}>"

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """See `Schemas.ask`: of several addresses the first that answers."""
        httpx = _httpx()
        last: Exception | None = None
        headers = {"Accept": "application/vnd.schemaregistry.v1+json", "Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        async with httpx.AsyncClient(
            auth=self._login, headers=headers, timeout=SLOW, verify=self._trust(), follow_redirects=False
        ) as client:
            for url in self._urls:
                try:
                    response = await client.request(
                        method,
                        f"{url.rstrip('/')}/{path}",
                        content=None if body is None else msgspec.json.encode(body),
                    )
                except httpx.TimeoutException as error:
                    last = Away(f"{_display(url)} did not answer within {SLOW:g} s")
                    last.__cause__ = error
                    continue
                except httpx.HTTPError as error:
                    if (why := _refusal(error)) is not None:
                        raise ConfigError(f"{_display(url)}: {why}: check ca=, cert= and key=") from error
                    last = Away(f"{_display(url)} cannot be reached: {_innermost(error)!r}")
                    last.__cause__ = error
                    continue
                if response.status_code != 429 and response.status_code < 500:
                    return self._answer(response)
                last = Away(f"{_display(url)} answered {response.status_code}")
        raise last or Away("it has no address")

    def _answer(self, response: Any) -> Answer:
        status = response.status_code
        if status in {401, 403}:
            raise ConfigError(
                f"{self!r} does not let us in ({status}): check username= and password=, or token="
            )
        if len(response.content) > LARGEST:
            raise ConfigError(f"{self!r} answered with more than {LARGEST} bytes")
        try:
            return Answer(status, msgspec.json.decode(response.content))
        except (msgspec.DecodeError, RecursionError) as error:
            raise ConfigError(
                f"{self!r} answered {status} with what is no JSON: is it a schema registry?"
            ) from error

    def _trust(self) -> Any:
        import ssl  # noqa: PLC0415 - only where somebody is asked

        ca, cert, key = self._files
        if ca is None and cert is None:  # making a context takes long, and plain HTTP needs none
            return any(url.startswith("https") for url in self._urls)
        try:
            context = ssl.create_default_context(cafile=ca)
            if cert is not None:
                context.load_cert_chain(cert, key, lambda: "")  # else it asks the terminal for a password
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the certificates of {self!r} cannot be read: {error}") from error
        return context


_ALERTS: Final = (
    "CERTIFICATE_REQUIRED", "UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_EXPIRED", "CERTIFICATE_REVOKED",
    "CERTIFICATE_UNKNOWN", "UNSUPPORTED_CERTIFICATE", "ACCESS_DENIED", "HANDSHAKE_FAILURE",
)  # fmt: skip
"""By which a server refuses what we are."""


def _refusal(error: BaseException) -> str | None:
    """Why a connection will not come about, whenever it is tried; None for an outage."""
    import ssl  # noqa: PLC0415 - as above

    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError) and str(cause.reason).endswith(_ALERTS):
            return f"it does not accept our certificate: {cause.reason}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _innermost(error: BaseException) -> BaseException:
    """What says most: httpx tells its own name of an error alone."""
    return [*_causes(error)][-1]


def _display(url: object) -> str:
    """An address without a login."""
    before, at, after = str(url).rpartition("@")
    return f"{before.partition('://')[0]}://{after}" if at else str(url)


def _httpx() -> Any:
    try:
        import httpx  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError('Registry needs httpx: pip install "things-kit[registry]"') from error
    return httpx
