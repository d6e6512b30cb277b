"""The conformance suite: what every broker must be seen to do, for drivers of ours and of everybody else.

A driver is proven by a test module of a few lines. Install `things-kit[testing]`, and write:

    import pytest

    from things_kit.testing.conformance import ConformanceSuite, Target


    class TestStone(ConformanceSuite):
        @pytest.fixture
        async def target(self):
            async with stone_server() as server:
                yield Target(url=f"stone://{server.address}")

(With pytest-asyncio in strict mode the fixture is a `pytest_asyncio.fixture`.) That is all: every test of the suite is
inherited. Each says in its docstring which line of the list of promises it proves (docs/conformance.md). `pytest -k "line or words"` works
as usual, and pytest-xdist may spread the tests: topics and groups have names that no other test uses, so they can
share a server. To run the suite in parts, subclass `DeliverySuite`, `SurvivalSuite`, `OutcomeSuite` or another of its
bases instead, each in a module of its own beside `suite`.

**What needs a server of its own** is not among them: `outages.OutageSuite` (the broker goes away), `progress.FreezeSuite`
(it stands still for longer than a session lasts) and `halfopen.HalfOpenSuite` (connections fall silent, half a minute each).

**What the suite reads.** It reads the driver's `Capabilities`, the same value that the engine reads. Where they say
that the broker lacks something which the engine then emulates, the promise is tested all the same; where it cannot be
had, the test asserts the refusal, or skips and says why.

**What the target can do.** The more of `Target` is given, the fewer tests skip:

* `shared=False` if no other process can connect with the URL. Otherwise the suite starts consumers in processes of
  their own, kills them with SIGKILL, and asserts that nothing is lost. They are run as
  `python -m things_kit.testing.conformance.worker`, so the driver must be installed: found by its entry point.
* `durable=False` if messages do not outlive the last connection.
* `pause` and `resume`, or `kill` and `restart`: to take the broker away and bring it back. `cut`: to break the open
  connections; `half_open`: to let them fall silent. They are async functions without parameters. Where the server is a process of the tests, `outages.outage`
  makes such targets, and `outages.OutageSuite` is what to run on them, so that all else can share one server.
* `lease_options={"lease": "0.5"}`: options of the URL that make leases short, where the driver has leases. Without
  them the tests that outwait a lease skip if it is longer than 20 seconds.
* `size_options={"max_message_bytes": "4096"}`: options that bound a message, so that a too large one is cheap to make.
* `secret`: the password in the URL. `absent`: a URL of the same kind behind which there is nobody.
* `foreign_publish` and `foreign_read`: another client of the broker, to prove that messages are normal ones there.
  `unreadable`: functions with which it publishes what your client cannot read, or not as text.
* `patience`: how long an event may take before a test fails, 15 seconds if nothing is said. Passing tests do not wait
  for it, so a slow server costs nothing but failures that take longer.

**What a failure means.** A test fails with what it waited for and what it saw last. The order tests print the story of
the lane that was broken: which message began, failed or was done, in which attempt and in which process. Tests with
random plans print how to repeat theirs. A test of leases or of times that failed while its own process stood still, on
a machine with other things to do, has shown nothing: it is begun anew, twice at most.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from things_kit.testing.conformance.connection import ConnectionSuite
    from things_kit.testing.conformance.dead_letters import DeadLetterSuite
    from things_kit.testing.conformance.delivery import DeliverySuite
    from things_kit.testing.conformance.fidelity import FidelitySuite
    from things_kit.testing.conformance.load import LoadSuite
    from things_kit.testing.conformance.operations import OperationsSuite
    from things_kit.testing.conformance.order import OrderSuite
    from things_kit.testing.conformance.outcomes import OutcomeSuite
    from things_kit.testing.conformance.suite import ConformanceSuite
    from things_kit.testing.conformance.survival import SurvivalSuite
    from things_kit.testing.conformance.target import Target

__all__ = [
    "ConformanceSuite",
    "ConnectionSuite",
    "DeadLetterSuite",
    "DeliverySuite",
    "FidelitySuite",
    "LoadSuite",
    "OperationsSuite",
    "OrderSuite",
    "OutcomeSuite",
    "SurvivalSuite",
    "Target",
]


def __getattr__(name: str) -> Any:
    # The worker processes live in this package too, and must not wait for pytest and hypothesis to be imported.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Target":
        from things_kit.testing.conformance.target import Target  # noqa: PLC0415

        return Target
    from things_kit.testing.conformance import suite  # noqa: PLC0415

    return getattr(suite, name)
