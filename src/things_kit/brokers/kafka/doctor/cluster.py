"""A cluster's brokers: where they are, and whether they have what the URL asks for."""

import re
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final

from things_kit.brokers.kafka.options import Settings
from things_kit.brokers.kafka.versions import Versions
from things_kit.engine.diagnosis import Finding

ADDRESS: Final = re.compile(r"(?:\w+://)?(\[[^]]+\]|[^:/]+)(?::(\d+))?")
"""An address as librdkafka takes it."""


def judge_versions(subject: str, versions: Versions, nodes: int, settings: Settings) -> Iterator[Finding]:
    """Which Kafka it is, and whether it has what the URL asks for."""
    options, release = settings.options, versions.release
    if release is None:
        what = "Its release cannot be told: it is older than 3.3, or no Apache Kafka."
        yield Finding("ok", subject, what)
        return
    new, share = versions.active.get("group.version", 0) > 0, versions.active.get("share.version", 0) > 0
    offers = f"group_protocol=consumer is {_offered(new)}, group_type=share {_offered(share)}"
    yield Finding("ok", subject, f"Apache Kafka {release}, in a cluster of {nodes}: {offers}.")
    if options.group_type == "share" and not share:
        remedy = "Switch it on with `kafka-features.sh upgrade --feature share.version=1` (Kafka 4.2)."
        yield Finding("error", subject, "The URL asks for share groups, which are not switched on.", remedy)
    elif options.group_protocol == "consumer" and not new:
        what = "The URL asks for the new group protocol, which is not switched on."
        remedy = "Leave out `group_protocol=consumer`, or upgrade the feature group.version (Kafka 4.0)."
        yield Finding("error", subject, what, remedy)


def _offered(offered: bool) -> str:
    return "offered" if offered else "not offered"


def addresses(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Host and port of each broker that the URL names."""
    for address in str(config["bootstrap.servers"]).split(","):
        found = ADDRESS.fullmatch(address.strip())
        if found:
            yield found[1].strip("[]"), int(found[2] or 9092)


def tls(config: Mapping[str, Any]) -> ssl.SSLContext | None:
    """What librdkafka is told of TLS, as Python has it."""
    if "ssl" not in str(config.get("security.protocol", "")).lower():
        return None
    context = ssl.create_default_context(cafile=config.get("ssl.ca.location"))
    if config.get("ssl.endpoint.identification.algorithm") == "none":
        context.check_hostname = False
    certificate = config.get("ssl.certificate.location")
    if certificate is not None:
        context.load_cert_chain(
            certificate, config.get("ssl.key.location"), config.get("ssl.key.password") or ""
        )
    return context
