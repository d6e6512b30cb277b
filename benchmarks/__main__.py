"""Run every benchmark whose name is given, or all, and write docs/benchmarks.md when all were run.

`growth` and `far` are none of all. They show what becomes of the speed as a load grows, and with the distance to the broker,
and take names of brokers; `growth` also those of what grows. `latency` is one of all, and takes names of brokers where it is the first.
"""

import asyncio
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from benchmarks import far, growth, latency
from benchmarks.result import Result

NAMES = (
    "memory",
    "contracts",
    "sqlite",
    "postgres",
    "kafka",
    "rabbitmq",
    "nats",
    "redis",
    "sqs",
    "pubsub",
    "servicebus",
    "requests",
    "loops",
    "latency",
    "outbox",
    "process",
)
REPORT = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def table(results: list[Result]) -> str:
    """A Markdown table."""
    rows = [
        f"| {r.name} | {r.figure} | {r.bound}{'' if r.met else ' (**missed**)'} | {r.notes} |"
        for r in results
    ]
    return "\n".join(["| what | figure | bound | notes |", "|---|---|---|---|", *rows])


def report(results: list[Result]) -> str:
    """The whole page."""
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    return (
        "# Benchmarks\n\n"
        "Every figure comes from one run of `make bench`; a ratio compares two things measured in that run.\n"
        "It is the median of the ratios of single rounds, in which both ran side by side; the two absolute figures beside it are medians over all\n"
        "rounds, each for itself, so that their quotient may be another.\n"
        "What is consumed is counted on both sides from the first message's handling until the last is acknowledged and the consumer has left; how long a\n"
        "consumer takes to its first message has rows of its own. The rounds are as many seconds long as the notes say, ours first.\n"
        "Until November 2026 this page counted the time to join a group too, on both sides, and said 0.88 of raw where Kafka had 0.24.\n"
        "Latency counts from the call that publishes until the handler is called, on both sides in one process that also does the rest of the work.\n"
        "Messages have 200 bytes, one header and one of 1,000 keys. SQS, Pub/Sub and Service Bus are measured against emulators,\n"
        "which bound their absolute figures, and those of the raw clients.\n\n"
        f"{table(results)}\n\n{machine}, {datetime.now(UTC):%Y-%m-%d}.\n"
    )


def main() -> int:
    """Returns 1 if a bound was missed."""
    apart = {"growth": growth.run, "far": far.run, "latency": latency.run}.get(
        sys.argv[1] if sys.argv[1:] else ""
    )
    if apart is not None:
        found = asyncio.run(apart(*sys.argv[2:]))
        print(table(found))
        return int(not all(result.met for result in found))
    chosen = sys.argv[1:] or NAMES
    results: list[Result] = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results += asyncio.run(import_module(f"benchmarks.{name}").run())
    print(table(results))
    if not sys.argv[1:]:
        REPORT.write_text(report(results))
    return int(not all(result.met for result in results))


if __name__ == "__main__":
    sys.exit(main())
