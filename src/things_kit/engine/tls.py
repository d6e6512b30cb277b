"""The options that say how TLS trusts and is trusted, and the context made by them."""

import os
import ssl
from pathlib import Path

import msgspec

from things_kit.engine.secrets import Secret
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError


class TLSOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options that a driver with TLS has among its own, which extend this Struct.

    Attributes:
        ca: File of the certificates that sign the broker's; the system's by default.
        cert: File of this client's certificate.
        key: File of its private key; by default it is in the file of the certificate.
        key_password: What the private key is encrypted with.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    key_password: Secret | None = None

    def given(self) -> list[str]:
        """The names of those that were given."""
        return [name for name in TLSOptions.__struct_fields__ if getattr(self, name) is not None]


def check_tls(url: BrokerURL, options: TLSOptions, *, secure: str | None = None) -> None:
    """Look whether the options go together, for clients that are given the names of the files.

    Args:
        url: What they are options of.
        options: The options.
        secure: The only scheme with TLS, where schemes say whether there is TLS.

    Raises:
        ConfigError: They do not, or a file cannot be read.
    """
    given = options.given()
    if given and secure is not None and url.scheme != secure:
        raise ConfigError(f"{url.display}: the option {given[0]!r} goes with {secure}://")
    if options.cert is None and (wrong := [name for name in given if name != "ca"]):
        raise ConfigError(
            f"{url.display}: the option {wrong[0]!r} needs 'cert', the certificate that it is for"
        )
    for name in ("ca", "cert", "key"):
        path = getattr(options, name)
        if path is not None and not (Path(path).is_file() and os.access(path, os.R_OK)):
            raise ConfigError(f"{url.display}: option {name!r}: the file {path!r} cannot be read")


def tls_context(url: BrokerURL, options: TLSOptions, *, check_hostname: bool = True) -> ssl.SSLContext:
    """What a connection needs. Reads files: the system's certificates alone take some 20 ms.

    Raises:
        ConfigError: A file cannot be read, is none of its kind, or the key does not fit the certificate or password.
    """
    check_tls(url, options)
    password = options.key_password.reveal() if options.key_password else ""
    at = "ca"
    try:
        context = ssl.create_default_context(cafile=options.ca)
        if options.cert is not None:
            at = "cert' or 'key"
            context.load_cert_chain(options.cert, options.key, lambda: password)  # else it asks the terminal
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"{url.display}: option '{at}': the file cannot be used: {reason}") from error
    context.check_hostname = check_hostname
    return context
