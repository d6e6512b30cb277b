"""Queues' policies: who may send to them."""

import json
from collections.abc import Mapping
from typing import Any, Final

STATEMENT: Final = "things-kit"
"""The statement of a queue's policy that is ours."""


def queue_arn(topic_arn: str, queue: str) -> str:
    """The ARN of a queue beside a topic: of the same partition, region and account."""
    _, partition, _, region, account, _ = topic_arn.split(":", 5)
    return f"arn:{partition}:sqs:{region}:{account}:{queue}"


def allowing(policy: dict[str, Any], topic_arn: str, queue_arn: str) -> dict[str, Any]:
    """A queue's policy with a statement that lets this topic send, whatever others it has."""
    statement = {
        "Sid": STATEMENT,
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": {"ArnEquals": {"aws:SourceArn": topic_arn}},
    }
    others = policy.get("Statement", [])
    others = [others] if isinstance(others, dict) else others
    if statement in others:
        return policy
    kept = [other for other in others if other.get("Sid") != STATEMENT]
    return {"Version": "2012-10-17", **policy, "Statement": [*kept, statement]}


def lets_in(policy: str, topic_arn: str) -> bool:
    """Whether a policy has a statement that lets SNS send, at least from this topic."""
    try:
        statements: Any = json.loads(policy or "{}").get("Statement", [])
    except ValueError:
        return False
    statements = [statements] if isinstance(statements, dict) else statements
    return any(_allows(statement, topic_arn) for statement in statements)


def _allows(statement: Mapping[str, Any], topic_arn: str) -> bool:
    if statement.get("Effect") != "Allow":
        return False
    actions = statement.get("Action")
    actions = [actions] if isinstance(actions, str) else actions or []
    if not {str(action).lower() for action in actions} & {"sqs:sendmessage", "sqs:*", "*"}:
        return False
    conditions: Mapping[str, Any] = statement.get("Condition") or {}
    sources = [
        source
        for condition in conditions.values()
        for name, value in condition.items()
        if name.lower() == "aws:sourcearn"
        for source in ([value] if isinstance(value, str) else value)
    ]
    return not sources or any(_matches(source, topic_arn) for source in sources)


def _matches(pattern: str, arn: str) -> bool:
    start, star, _ = pattern.partition("*")
    return arn.startswith(start) if star else arn == pattern
