"""Whether the demo's counts add up, and what to say of each."""

from collections import Counter

import msgspec

from things_kit.cli.demo.audit import Audit
from things_kit.cli.printing import counted


class Check(msgspec.Struct, frozen=True):
    """One thing that must be true, with what was found."""

    ok: bool
    name: str
    found: str


def checks(audit: Audit) -> list[Check]:
    """All that the demo holds itself to."""
    return [_nothing_lost(audit), _faults(audit), _late(audit), _came_again(audit), _kept(audit), _lag(audit)]


def elsewhere(audit: Audit) -> Counter[str]:
    """Dead letters that were not planted: what is wrong with the environment itself, by type of error."""
    reasons = audit.tally.reasons()
    return Counter(
        reason
        for message_id, reason in reasons.items()
        if message_id in audit.messages and audit.messages[message_id].file.path not in audit.planted.expected
    )


def _nothing_lost(audit: Audit) -> Check:
    verified, dead = audit.tally.verified.keys(), audit.tally.dead.keys()
    lost = audit.messages.keys() - verified - dead
    strange = (verified | dead) - audit.messages.keys()
    found = f"{audit.total} published = {len(verified)} verified + {len(dead)} dead letters"
    if lost or strange or verified & dead:
        found += f"; {len(lost)} lost, {len(strange)} never published, {len(verified & dead)} both"
    return Check(not (lost or strange or verified & dead), "nothing was lost", found)


def _faults(audit: Audit) -> Check:
    reasons = audit.tally.reasons()
    found = {
        audit.messages[message_id].file.path: reason
        for message_id, reason in reasons.items()
        if message_id in audit.messages
    }
    right = {path for path, reason in audit.planted.expected.items() if found.get(path) == reason}
    kinds = Counter(audit.planted.expected[path] for path in right)
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    wanted = len(audit.planted.expected)
    return Check(len(right) == wanted, "every planted fault was found", f"{len(right)} of {wanted}: {told}")


def _late(audit: Audit) -> Check:
    late = next(
        message_id for message_id, entry in audit.messages.items() if entry.file.path == audit.planted.late
    )
    attempt = audit.tally.attempts.get(late, 0)
    return Check(attempt > 1, "a file that came late was tried again", f"verified at attempt {attempt}")


def _came_again(audit: Audit) -> Check:
    return Check(
        audit.tally.verified[audit.in_hand] > 1,
        "what the killed worker held came again",
        f"{counted(len(audit.tally.again), 'message')}, {len(audit.tally.twice)} of them verified twice",
    )


def _kept(audit: Audit) -> Check:
    kept = len(audit.kept)
    same = audit.kept == audit.tally.dead.keys()
    return Check(same, "every dead letter is kept", f"{kept} in {audit.plan.dead_letters}")


def _lag(audit: Audit) -> Check:
    found = "this broker cannot say" if audit.lag is None else f"lag {audit.lag}"
    return Check(not audit.lag, "everything is acknowledged", found)
