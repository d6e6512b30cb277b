"""What in a topic's or a group's settings at the service would lose messages or hold them up.

Nothing here changes anything. Settings are judged by functions of what was asked for.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from importlib.metadata import version

from google.pubsub_v1 import types

from things_kit.brokers.pubsub.options import DAY, Settings
from things_kit.brokers.pubsub.resources import Resources
from things_kit.engine.diagnosis import Finding, Question
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.names import DEAD_LETTER_GROUP


async def examine(resources: Resources, settings: Settings, question: Question) -> Sequence[Finding]:
    """Everything there is to find. Raises ConnectionLost."""
    findings = [Finding("ok", "google-cloud-pubsub", f"Version {version('google-cloud-pubsub')}.")]
    if settings.plain:
        what = f"{settings.host} is called without TLS and without a login, as an emulator is."
        findings.append(Finding("ok", settings.url.display, what))
    if question.topic is not None:
        findings += [finding async for finding in _topic(resources, settings, question, question.topic)]
    return findings


async def _topic(
    resources: Resources, settings: Settings, question: Question, topic: str
) -> AsyncIterator[Finding]:
    subject = f"topic {topic}"
    try:
        found = await resources.find_topic(topic)
        if found is None:
            yield _missing_topic(subject, declare=settings.url.engine.declare)
            return
        groups = await resources.subscriptions(topic)
    except ConfigError as error:
        yield _forbidden(subject, error)
        return
    for finding in judge_topic(subject, found, groups):
        yield finding
    if question.group is not None:
        async for finding in _group(resources, settings, question, topic, question.group):
            yield finding
    if question.dead_letter is not None:
        yield await _dead_letter(resources, question.dead_letter)


async def _group(
    resources: Resources, settings: Settings, question: Question, topic: str, group: str
) -> AsyncIterator[Finding]:
    subject = f"group {group}"
    try:
        found = await resources.find(topic, group)
    except ConfigError as error:
        yield _forbidden(subject, error)
        return
    if found is None:
        what = f"It has no subscription to {topic}: what is published before it has one does not reach it."
        remedy = f"Start its consumer, or run `things-kit declare URL {topic} --group {group}`."
        yield Finding("warning", subject, what, remedy)
        return
    for finding in judge_subscription(subject, found, question, ordered=settings.options.ordering != "none"):
        yield finding


async def _dead_letter(resources: Resources, topic: str) -> Finding:
    subject = f"dead letter {topic}"
    try:
        if await resources.find_topic(topic) is None:
            what = "It does not exist yet; a consumer creates it at its start."
            return Finding("ok", subject, what)
        if await resources.find(topic, DEAD_LETTER_GROUP) is None:
            what = (
                f"It has no group {DEAD_LETTER_GROUP}: the service drops what no subscription is there for."
            )
            remedy = f"Run `things-kit declare URL {topic} --group {DEAD_LETTER_GROUP}`, or start a consumer."
            return Finding("error", subject, what, remedy)
    except ConfigError as error:
        return _forbidden(subject, error)
    return Finding("ok", subject, f"It has the group {DEAD_LETTER_GROUP}.")


def _missing_topic(subject: str, *, declare: bool) -> Finding:
    if declare:
        return Finding("warning", subject, "It does not exist yet; publishing or consuming creates it.")
    remedy = "Declare it, or leave out declare=false."
    return Finding("error", subject, "It does not exist, and declare=false keeps it so.", remedy)


def _forbidden(subject: str, error: ConfigError) -> Finding:
    remedy = "Ask with an account that has the role Pub/Sub Viewer."
    return Finding("warning", subject, f"It cannot be looked at: {error}.", remedy)


def judge_topic(subject: str, topic: types.Topic, groups: Sequence[str]) -> Iterator[Finding]:
    """What its settings mean."""
    retained = topic.message_retention_duration
    if not groups and not retained:
        what = "It has no subscription: the service drops what is published."
        yield Finding("warning", subject, what, "Declare the groups before anything is published.")
    if topic.schema_settings.schema:
        what = f"The service refuses messages that do not fit {topic.schema_settings.schema}."
        yield Finding(
            "warning", subject, what, "Check that all that is published fits, dead letters as well."
        )
    kept = "not at all" if not retained else f"{retained.total_seconds() / DAY:.3g} days"
    what = f"It has {len(groups)} subscriptions, and keeps what was acknowledged {kept}."
    yield Finding("ok", subject, what)


def judge_subscription(
    subject: str, found: types.Subscription, question: Question, *, ordered: bool
) -> Iterator[Finding]:
    """What a group's settings mean."""
    yield from _blocking(subject, found, ordered=ordered)
    yield from _losing(subject, found, question)
    delivery = "exactly once" if found.enable_exactly_once_delivery else "at least once"
    yield Finding("ok", subject, f"Its subscription is {found.name.rpartition('/')[2]}, delivery {delivery}.")


def _blocking(subject: str, found: types.Subscription, *, ordered: bool) -> Iterator[Finding]:
    if found.detached:
        what = "Its subscription was detached from the topic: nothing reaches it any more."
        yield Finding("error", subject, what, "Delete the subscription, and declare the group anew.")
    if ordered and not found.enable_message_ordering:
        what = "Its subscription was created without message ordering, which cannot be changed."
        remedy = 'Delete it, so that it is created anew, or consume with ordering="none".'
        yield Finding("error", subject, what, remedy)
    if found.push_config.push_endpoint or found.bigquery_config.table or found.cloud_storage_config.bucket:
        what = "Its subscription delivers to somewhere else by itself, so nothing can be pulled from it."
        yield Finding("error", subject, what, "Change its delivery type to pull.")
    if found.retry_policy.minimum_backoff:
        wait = found.retry_policy.minimum_backoff.total_seconds()
        what = f"What a consumer gives back when it stops comes again only after {wait:g} s or longer."
        yield Finding("warning", subject, what, "Change its retry policy to retry immediately.")


def _losing(subject: str, found: types.Subscription, question: Question) -> Iterator[Finding]:
    policy, ttl = found.dead_letter_policy, found.expiration_policy.ttl
    if policy.dead_letter_topic:
        what = (
            f"After {policy.max_delivery_attempts} deliveries the service itself moves a message to "
            f"{policy.dead_letter_topic}, and stopping a consumer counts as one."
        )
        yield Finding("warning", subject, what, "Remove its dead lettering: the consumer's own does it.")
    if ttl:
        what = f"The service deletes it after {ttl.total_seconds() / DAY:.3g} days without a consumer, with all that waits."
        yield Finding("warning", subject, what, "Change its expiration to never.")
    if found.filter:
        what = f"It has a filter, and never gets what does not fit: {found.filter}"
        yield Finding("warning", subject, what, "Delete the subscription to be rid of it.")
    kept = found.message_retention_duration.total_seconds() if found.message_retention_duration else 7 * DAY
    if question.retry_span is not None and kept < question.retry_span:
        what = f"The service drops a message after {kept:g} s, before its last attempt."
        yield Finding("error", subject, what, "Raise its message retention, or have fewer attempts.")
    elif kept < DAY:
        what = f"The service drops what was not acknowledged for {kept:g} s."
        yield Finding("warning", subject, what, "Raise its message retention.")
