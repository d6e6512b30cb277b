"""What is wrong with a broker, or soon will be: findings, each with its remedy.

`diagnose` asks what every broker can answer. Of a driver that is `Factual` it asks how things are, and concludes.
"""

import asyncio
import contextlib
from typing import Final

import msgspec

from things_kit.engine.broker import Broker
from things_kit.engine.conclusions import LARGE, conclude
from things_kit.engine.driver import ConnectionLost, Listing
from things_kit.engine.facts import Facts, Factual, Finding, Question
from things_kit.engine.looking import topics_of
from things_kit.messaging.errors import ThingsKitError
from things_kit.messaging.names import DEAD_LETTER_GROUP

PATIENCE: Final = 10.0
"""Seconds for which a broker that is away is waited for: whoever asks what is wrong does not want to wait it out."""

SLOW: Final = 1.0
"""Seconds beyond which an answer is slow: it takes milliseconds."""

WATCH: Final = 2.0
"""Seconds for which the lag is watched."""


async def diagnose(broker: Broker, question: Question, *, declares: bool | None = None) -> list[Finding]:
    """Look at a broker, which is opened if it is not; the caller closes it.

    `declares` says whether its users create what is missing, where this broker, which only looks, does not.

    Raises:
        ConfigError: The question has a name that no topic or group can have.
    """
    question.check()
    reached = await _reach(broker)
    if reached.level == "error":
        return [reached]
    findings = [reached]
    try:
        if question.topic is not None and question.group is not None:
            findings.append(await _lag(broker, question.topic, question.group))
        if question.dead_letter is not None:
            findings.append(await _dead_letters(broker, question.dead_letter))
        driver = broker.transmission.driver
        if isinstance(driver, Factual):
            declares = broker.url.engine.declare if declares is None else declares
            facts = await driver.facts(msgspec.structs.replace(question, creates=declares))
            await _name_others(broker, facts)
            findings += conclude(facts, question, driver.capabilities, declares=declares)
    except (ConnectionLost, ThingsKitError) as error:
        what = f"The broker could not be asked further: {error}."
        findings.append(
            Finding("error", broker.url.display, what, "Ask again, and look into the broker's log.")
        )
    return findings


async def _name_others(broker: Broker, facts: Facts) -> None:
    """Of a topic that is missing, tell which there are."""
    missing = [topic for topic in facts.topics if not topic.there and not topic.others]
    if missing and isinstance(broker.transmission.driver, Listing):
        with contextlib.suppress(ThingsKitError):
            known = await topics_of(broker)
            for topic in missing:
                topic.others = known


async def _reach(broker: Broker) -> Finding:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(PATIENCE):
            await broker.open()
            reason = (await broker.health()).reason
    except TimeoutError:
        reason = str(broker.transmission.away or f"no answer within {PATIENCE:g} s")
    except ThingsKitError as error:
        reason = str(error)
    took = loop.time() - began
    subject = broker.url.display
    if reason is not None:
        remedy = (
            "Check the URL, its options and login, and whether the broker runs and can be reached from here."
        )
        return Finding("error", subject, f"Not well: {reason.rstrip('.')}.", remedy)
    if took > SLOW:
        remedy = "Look for a slow network, a slow disk or an overloaded broker."
        return Finding("warning", subject, f"It answers, but took {took:.1f} s.", remedy)
    return Finding("ok", subject, f"It answers, in {1000 * took:.0f} ms.")


async def _lag(broker: Broker, topic: str, group: str) -> Finding:
    subject = f"group {group}"
    before = await broker.lag(topic, group)
    if before is None:
        return Finding("ok", subject, f"The broker cannot say how far behind it is in {topic}.")
    if before == 0:
        return Finding("ok", subject, f"Nothing in {topic} waits for it.")
    await asyncio.sleep(WATCH)
    after = await broker.lag(topic, group) or 0
    if after > before:
        what = f"It is {after:,} messages behind in {topic}, {after - before:,} more than {WATCH:g} s before."
        remedy = "If that goes on, raise concurrency, start more consumers, or make the handler faster."
        return Finding("warning", subject, what, remedy)
    if after >= LARGE:
        moves = "and catching up" if after < before else "and it does not get less"
        what = f"It is {after:,} messages behind in {topic}, {moves}."
        remedy = "Check that its consumers run and that their handlers succeed; raise concurrency if they do."
        return Finding("warning", subject, what, remedy)
    return Finding("ok", subject, f"It is {after:,} messages behind in {topic}.")


async def _dead_letters(broker: Broker, topic: str) -> Finding:
    waiting = await broker.lag(topic, DEAD_LETTER_GROUP)
    subject = f"dead letter {topic}"
    if waiting is None:
        return Finding("ok", subject, "The broker cannot say whether dead letters wait.")
    if waiting == 0:
        return Finding("ok", subject, "No dead letters wait.")
    remedy = (
        f"See why with `things-kit dlq list URL {topic}`, and send them back with `things-kit dlq replay`."
    )
    return Finding("warning", subject, f"Dead letters wait: {waiting:,}.", remedy)
