"""The plugin in a pytest of its own, as an environment with the package would load it."""

import importlib.metadata
import re
import shlex
import subprocess
import sys

import pytest

from things_kit import Message, connect

USE = """
    import pytest
    from things_kit import Broker, Message

    {mark}
    async def test_it(memory_broker):
        assert isinstance(memory_broker, Broker)
        await memory_broker.declare("orders", groups=["billing"])
        await memory_broker.producer().publish(Message("orders", b"x"))
        assert await memory_broker.lag("orders", group="billing") == 1

    {mark}
    async def test_it_is_the_tests_own(memory_broker):
        await memory_broker.declare("orders", groups=["billing"])
        assert await memory_broker.lag("orders", group="billing") == 0
"""


def _run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    names = {entry.value for entry in importlib.metadata.entry_points(group="pytest11")}
    plugin = () if "things_kit.testing.plugin" in names else ("-p", "things_kit.testing.plugin")
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *plugin, *arguments)


def test_memory_broker_is_an_open_broker_in_auto_mode(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USE.format(mark=""))
    _run(pytester, "-o", "asyncio_mode=auto").assert_outcomes(passed=2)


def test_memory_broker_is_an_open_broker_in_strict_mode(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USE.format(mark="@pytest.mark.asyncio"))
    _run(pytester, "-o", "asyncio_mode=strict").assert_outcomes(passed=2)


HANDLER = """
import pytest
from things_kit import Message

async def handle(message: Message) -> None:
    pass
"""

LEFT_RUNNING = """
{mark}
async def test_{name}(memory_broker):
    await memory_broker.consumer("orders", group="billing", handler=handle).start()
    await memory_broker.producer().publish(Message("orders", b"x"))
"""


def test_memory_broker_is_closed_though_a_test_in_a_wider_loop_left_a_consumer_running(
    pytester: pytest.Pytester,
) -> None:
    tests = [
        LEFT_RUNNING.format(mark=f"@pytest.mark.asyncio(loop_scope={scope!r})", name=scope)
        for scope in ("function", "class", "module", "package", "session")
    ]
    pytester.makepyfile(HANDLER + "".join(tests))
    _run(pytester, "-o", "asyncio_mode=auto", "--timeout=60").assert_outcomes(passed=5)


def test_memory_broker_is_on_the_loop_that_is_the_default_for_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HANDLER + LEFT_RUNNING.format(mark="", name="by_default"))
    wider = ("-o", "asyncio_default_test_loop_scope=session")
    _run(pytester, "-o", "asyncio_mode=auto", *wider, "--timeout=60").assert_outcomes(passed=1)


def test_without_pytest_asyncio_only_its_fixtures_fail(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_else():
            pass

        def test_it(memory_broker):
            pass
        """
    )
    pytester.makeconftest("")
    pytester.path.joinpath("pytest_asyncio.py").write_text(
        "raise ModuleNotFoundError('hidden', name='pytest_asyncio')"
    )
    pytester.syspathinsert()
    result = _run(pytester, "-p", "no:asyncio", "-o", "pythonpath=.")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*memory_broker needs pytest-asyncio*"])


def test_the_suite_runs_in_strict_mode_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from uuid import uuid4

        import pytest
        from things_kit.testing.conformance import ConformanceSuite, Target

        class TestMine(ConformanceSuite):
            @pytest.fixture
            def target(self):
                return Target(url=f"memory://{uuid4().hex}", shared=False, durable=False)
        """
    )
    result = _run(pytester, "-o", "asyncio_mode=strict", "-k", "published_is_handled or any_key_value")
    result.assert_outcomes(passed=2)


CHARGED_TWICE = """
import asyncio

import pytest
from things_kit import Message
from things_kit.testing import SimulationFailed, World, simulate

class Naive(World):
    async def setup(self):
        self.charged = []

    async def handle(self, message):
        await asyncio.sleep(0.01)
        self.charged.append(message.id)

    def consumers(self, broker):
        return [broker.consumer("orders", group="billing", handler=self.handle)]

    async def workload(self, producer):
        await producer.publish(Message("orders", b"x"))

    def always(self):
        assert len(self.charged) == len(set(self.charged)), "charged twice"

@pytest.mark.parametrize("broker", ["redis"], ids=["it's on [Redis]"])
def test_billing(broker):
    try:
        simulate(Naive, broker=broker)
    except SimulationFailed as failed:
        report = failed.report
        print("told:", report.histories, report.seed, report.hash, report.history)
        raise
"""


def test_the_line_that_replays_a_simulation_runs_as_it_is_printed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(CHARGED_TWICE)
    first = _run(pytester)
    first.assert_outcomes(failed=1)
    line = re.search(r"again: (pytest .*)", str(first.stdout))
    assert line, str(first.stdout)
    program, *arguments = shlex.split(line[1])
    assert program == "pytest"
    again = _run(pytester, *arguments)
    again.assert_outcomes(failed=1)
    told, told_again = (re.search(r"told: (\d+) (\d+) (.*)", str(run.stdout)) for run in (first, again))
    assert told
    assert told_again
    assert int(told[1]) == int(told[2]) + 1 > 1, (
        "the first seed failed, which a run without the option has too"
    )
    assert told_again[1] == "1"
    assert told_again.groups()[1:] == told.groups()[1:]


def test_loading_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, things_kit.testing.plugin;"
        "heavy = {'hypothesis', 'things_kit.engine.broker', 'things_kit.testing.conformance'} & sys.modules.keys();"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("broker", ["nats", "redis"])
async def test_the_fixtures_of_containers_are_real_brokers(
    request: pytest.FixtureRequest, broker: str
) -> None:
    running = request.getfixturevalue(f"{broker}_container")
    async with connect(running.url) as opened:
        await opened.producer().publish(Message("orders", b"x"))
        assert await opened.lag("orders", "billing") == 1
