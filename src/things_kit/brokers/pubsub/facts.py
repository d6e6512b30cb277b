"""How topics and subscriptions at the service are. Nothing here changes anything."""

from collections.abc import Iterator, Sequence
from importlib.metadata import version

from google.pubsub_v1 import types

from things_kit.brokers.pubsub.admin import Admin, delivers_elsewhere
from things_kit.brokers.pubsub.options import DAY, Settings
from things_kit.engine.facts import Blocked, Facts, GroupFacts, Question, Retention, TopicFacts


async def facts_of(admin: Admin, settings: Settings, question: Question) -> Facts:
    """Everything there is to tell. Raises ConnectionLost."""
    facts = Facts()
    facts.find("ok", "google-cloud-pubsub", f"Version {version('google-cloud-pubsub')}.")
    if settings.plain:
        what = f"{settings.host} is called without TLS and without a login, as an emulator is."
        facts.find("ok", settings.url.display, what)
    ordered = settings.options.ordering != "none"
    for topic, group in question.wanted:
        with facts.looking(f"topic {topic}"):
            found = await admin.find_topic(topic)
            if found is None:
                facts.topics.append(TopicFacts(name=topic, there=False))
                continue
            add_topic(facts, topic, found, await admin.subscriptions(topic))
        if group is not None:
            with facts.looking(f"group {group}"):
                add_group(facts, topic, group, await admin.find(topic, group), ordered=ordered)
    return facts


def add_topic(facts: Facts, name: str, topic: types.Topic, groups: Sequence[str]) -> None:
    """A topic, with its subscriptions, whosever they are."""
    # Where a topic keeps what was acknowledged too, who comes later misses nothing
    facts.topics.append(TopicFacts(name=name, groups=None if topic.message_retention_duration else groups))
    if topic.schema_settings.schema:
        what = f"The service refuses messages that do not fit {topic.schema_settings.schema}."
        remedy = "Check that all that is published fits, dead letters as well."
        facts.find("warning", f"topic {name}", what, remedy)


def add_group(
    facts: Facts, topic: str, name: str, found: types.Subscription | None, *, ordered: bool
) -> None:
    """A group, by its subscription."""
    if found is None:
        facts.groups.append(GroupFacts(name=name, topic=topic, there=False, place="subscription"))
        return
    policy, ttl = found.dead_letter_policy, found.expiration_policy.ttl
    kept = found.message_retention_duration
    delivery = "exactly once" if found.enable_exactly_once_delivery else "at least once"
    facts.groups.append(
        GroupFacts(
            name=name,
            topic=topic,
            place=f"subscription {found.name.rpartition('/')[2]!r}, delivery {delivery}",
            retention=Retention(kept.total_seconds() if kept else 7 * DAY, "message retention"),
            deliveries=policy.max_delivery_attempts if policy.dead_letter_topic else None,
            goes_to=policy.dead_letter_topic,
            idle=ttl.total_seconds() if ttl else None,
            filter=found.filter,
            blocked=[*_blocked(found, ordered=ordered)],
        )
    )
    if found.retry_policy.minimum_backoff:
        wait = found.retry_policy.minimum_backoff.total_seconds()
        what = f"What a consumer gives back when it stops comes again only after {wait:g} s or longer."
        facts.find("warning", f"group {name}", what, "Change its retry policy to retry immediately.")


def _blocked(found: types.Subscription, *, ordered: bool) -> Iterator[Blocked]:
    if found.detached:
        what = "Its subscription was detached from the topic: nothing reaches it any more."
        yield Blocked(what, "Delete the subscription, and declare the group anew.")
    if ordered and not found.enable_message_ordering:
        what = "Its subscription was created without message ordering, which cannot be changed."
        yield Blocked(what, 'Delete it, so that it is created anew, or consume with ordering="none".')
    if delivers_elsewhere(found):
        what = "Its subscription delivers to somewhere else by itself, so nothing can be pulled from it."
        yield Blocked(what, "Change its delivery type to pull.")
