"""What happens in the server: handing out, settling and giving places, each in one round trip and one transaction.

All that concerns a group happens under the lock of its row, so that each function may reason as if it were alone; what
is before that lock in a function does not count. Written once in SQL, it also needs no state of a session, and holds no
lock while a client is slow. The planner is told to use the indexes, and how to join is written so that it has no choice
(LATERAL, OFFSET 0, rows by their ctid, which none but us moves): tables that fill and empty all the time are empty when a
plan is made, and then it would go through all that a group has queued for each message that is taken.
"""

from typing import Final

from things_kit.brokers.postgres.administering import ADMINISTERING
from things_kit.brokers.postgres.lending import LENDING
from things_kit.brokers.postgres.placing import PLACING
from things_kit.brokers.postgres.schema import filled

SEGMENT: Final = 500
SCAN: Final = 5_000
PROMOTED: Final = 1_000
BEHIND: Final = 100
"""So far what is known of a group may be behind: each time that it is noted makes one more row to be cleaned up."""

PAGE_BYTES: Final = 32 * 1024 * 1024

GONE: Final = "TK404"
"""SQLSTATE: the group was removed."""

EXPIRED: Final = "TK410"
"""SQLSTATE: the receiver has lost its lease, and what it held."""

NO_TOPIC: Final = "TK405"
NO_GROUP: Final = "TK406"
"""SQLSTATE: what is missing was not to be made."""

_PAGE: Final = """OUT offsets bigint[], OUT keys bytea[], OUT payloads bytea[], OUT headers text[], OUT ids text[],
        OUT times timestamptz[]"""

_PLPGSQL: Final = """LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET jit = off AS $body$
#variable_conflict use_column
"""


def functions(schema: str) -> list[str]:
    """The statements that make, or renew, what happens in the server."""
    numbers = {
        "segment": SEGMENT,
        "scan": SCAN,
        "promoted": PROMOTED,
        "behind": BEHIND,
        "page_bytes": PAGE_BYTES,
    }
    words = {
        "plpgsql": _PLPGSQL,
        "page": _PAGE,
        "gone": GONE,
        "expired": EXPIRED,
        "no_topic": NO_TOPIC,
        "no_group": NO_GROUP,
    } | {k: str(v) for k, v in numbers.items()}
    made = []
    for text in (*PLACING, *LENDING, *ADMINISTERING):
        for word, meaning in words.items():
            text = text.replace("{" + word + "}", meaning)  # noqa: PLW2901
        made.append(filled(text, schema))
    return made
