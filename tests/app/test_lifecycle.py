"""What starts, stops and fails, and in which order."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from things_kit import App, Hook, Lifecycle, WiringError, invoke, provide


class Diary(list[str]):
    """What happened."""

    def hook(self, name: str, **options: Any) -> Hook:
        async def begin() -> None:
            self.append(f"start {name}")

        def end() -> None:
            self.append(f"stop {name}")

        return Hook(on_start=begin, on_stop=end)._replace(**options)


def hooks(*given: Hook) -> App:
    def add(lifecycle: Lifecycle) -> None:
        for hook in given:
            lifecycle.append(hook)

    return App(invoke(add))


async def refuse() -> None:
    raise RuntimeError("refused")


async def never() -> None:
    await asyncio.Event().wait()


async def test_hooks_start_in_order_and_stop_in_reverse() -> None:
    diary = Diary()
    async with hooks(*map(diary.hook, "abc")):
        assert diary == ["start a", "start b", "start c"]
    assert diary[3:] == ["stop c", "stop b", "stop a"]


async def test_invoked_functions_are_called_in_order_before_any_hook_starts() -> None:
    diary = Diary()

    async def first(lifecycle: Lifecycle) -> None:
        lifecycle.append(diary.hook("hook"))
        diary.append("first")

    def second() -> None:
        diary.append("second")

    async with App(invoke(first), invoke(second)):
        assert diary == ["first", "second", "start hook"]


async def test_a_failed_start_stops_what_had_started() -> None:
    diary = Diary()
    app = hooks(diary.hook("a"), diary.hook("b", on_start=refuse), diary.hook("c"))
    with pytest.raises(RuntimeError, match="refused"):
        await app.start()
    assert diary == ["start a", "stop a"]


async def test_all_stop_though_one_fails() -> None:
    diary = Diary()
    app = hooks(diary.hook("a"), diary.hook("b", on_stop=refuse), diary.hook("c"))
    await app.start()
    with pytest.raises(ExceptionGroup) as caught:
        await app.stop()
    assert [str(error) for error in caught.value.exceptions] == ["refused"]
    assert diary[3:] == ["stop c", "stop a"]


async def test_a_start_that_takes_too_long_fails_and_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"starting never took longer than 0\.01 s"):
        await hooks(Hook(on_start=never, start_timeout=0.01)).start()


async def test_a_stop_that_takes_too_long_is_given_up_and_named() -> None:
    diary = Diary()
    app = hooks(diary.hook("a"), Hook(on_stop=never, stop_timeout=0.01))
    await app.start()
    with pytest.raises(ExceptionGroup) as caught:
        await app.stop()
    assert "stopping never took longer than 0.01 s" in str(caught.value.exceptions[0])
    assert diary[-1] == "stop a"


async def test_making_something_that_takes_too_long_fails_and_is_named() -> None:
    class Slow:
        pass

    async def slow() -> Slow:
        await never()
        return Slow()

    def use(_: Slow) -> None: ...

    with pytest.raises(TimeoutError, match=r"slow \(.*\) took longer than 0\.01 s"):
        await App(provide(slow, timeout=0.01), invoke(use)).start()


async def test_neighbours_that_say_so_start_and_stop_side_by_side() -> None:
    both = asyncio.Barrier(2)

    async def meet() -> None:
        async with both:
            pass

    together = Hook(on_start=meet, on_stop=meet, together=True)
    async with asyncio.timeout(10), hooks(together, together):
        pass


async def test_a_neighbour_that_fails_cancels_the_others_and_those_that_were_through_are_stopped() -> None:
    diary = Diary()
    started = asyncio.Event()

    async def refuse_then() -> None:
        await started.wait()
        await refuse()

    def quick() -> None:
        diary.append("start quick")
        started.set()

    app = hooks(
        diary.hook("quick", on_start=quick, together=True),
        Hook(on_start=refuse_then, together=True),
        Hook(on_start=never, on_stop=lambda: diary.append("stop never"), together=True),
    )
    with pytest.raises(RuntimeError, match="refused"):
        await app.start()
    assert diary == ["start quick", "stop quick"]


async def test_what_is_watched_and_breaks_ends_the_app_with_its_reason() -> None:
    diary = Diary()
    app = hooks(diary.hook("a", watch=refuse))
    await app.start()
    with pytest.raises(RuntimeError, match="refused"):
        await app.wait()
    await app.stop()
    assert diary == ["start a", "stop a"]


async def test_what_is_watched_and_was_cancelled_by_others_ends_the_app_as_well() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError("from outside")

    app = hooks(Hook(watch=cancelled))
    await app.start()
    with pytest.raises(RuntimeError, match="cancelled was cancelled: from outside"):
        await app.wait()
    await app.stop()


async def test_a_test_that_enters_an_app_sees_what_broke_in_it() -> None:
    with pytest.raises(RuntimeError, match="refused"):
        async with hooks(Hook(watch=refuse)) as app:
            await asyncio.wait([asyncio.ensure_future(app.wait())])


async def test_what_is_watched_and_ends_does_not_end_the_app() -> None:
    ended = asyncio.Event()

    async def end() -> None:
        ended.set()

    async with hooks(Hook(watch=end)) as app:
        await ended.wait()
        waiting = asyncio.ensure_future(app.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        app.shutdown()
        await waiting


async def test_an_app_can_be_started_again() -> None:
    diary = Diary()
    app = hooks(diary.hook("a"))
    for _ in range(2):
        async with app:
            with pytest.raises(RuntimeError, match="runs already"):
                await app.start()
    await app.stop()
    assert diary == ["start a", "stop a"] * 2
    with pytest.raises(RuntimeError, match="does not run"):
        await app.get(Diary)


async def test_a_start_that_is_cancelled_stops_what_had_started() -> None:
    diary = Diary()
    reached = asyncio.Event()

    async def wait() -> None:
        reached.set()
        await never()

    starting = asyncio.ensure_future(hooks(diary.hook("a"), Hook(on_start=wait)).start())
    await reached.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert diary == ["start a", "stop a"]


async def test_a_stop_whose_caller_is_cancelled_still_stops_everything() -> None:
    diary = Diary()
    stopping, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        stopping.set()
        await go_on.wait()

    app = hooks(diary.hook("a"), Hook(on_stop=slow))
    await app.start()
    end = asyncio.ensure_future(app.stop())
    await stopping.wait()
    end.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await end
    assert diary[-1] == "stop a"


async def test_a_hook_that_is_none_or_comes_too_late_is_refused() -> None:
    def wrong(lifecycle: Lifecycle) -> None:
        lifecycle.append(print)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="takes a Hook"):
        await App(invoke(wrong)).start()
    with pytest.raises(TypeError, match="cannot be called"):
        await hooks(Hook(on_start="text")).start()  # type: ignore[arg-type]

    def late(lifecycle: Lifecycle) -> None:
        lifecycle.append(Hook(on_start=lambda: lifecycle.append(Hook())))

    with pytest.raises(RuntimeError, match="too late"):
        await App(invoke(late)).start()


def plain_generator() -> Any:
    yield


async def async_generator() -> Any:
    yield


@pytest.mark.parametrize("step", [plain_generator, async_generator])
@pytest.mark.parametrize("which", ["on_start", "on_stop", "watch"])
async def test_a_hook_that_yields_is_refused(step: Any, which: str) -> None:
    with pytest.raises(TypeError, match="generator is a generator, so nothing of it would run"):
        async with hooks(Hook(**{which: step})):
            pass


@pytest.mark.parametrize("function", [plain_generator, async_generator])
async def test_what_is_invoked_and_yields_is_a_mistake_in_the_wiring(function: Any) -> None:
    with pytest.raises(
        WiringError, match=r"generator .*so nothing of it would run.*; provide\(\) takes a generator"
    ):
        async with App(invoke(function)):
            pass


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("function", "sentence"),
    [(plain_generator, "a generator"), (async_generator, "a generator"), (refuse, "a coroutine")],
)
async def test_what_returns_code_that_has_yet_to_run_fails_the_start(function: Any, sentence: str) -> None:
    async def forgetful() -> Any:
        return function()

    for app in (App(invoke(forgetful)), hooks(Hook(on_start=forgetful))):
        with pytest.raises(TypeError, match=f"forgetful returned {sentence}"):
            async with app:
                pass


async def test_what_a_generator_enters_it_leaves_in_the_same_task() -> None:
    tasks: list[object] = []

    class Group:
        pass

    async def group() -> AsyncIterator[Group]:
        tasks.append(asyncio.current_task())
        async with asyncio.TaskGroup():
            yield Group()
        tasks.append(asyncio.current_task())

    def use(_: Group) -> None: ...

    async with App(provide(group), invoke(use)):
        pass
    assert tasks[0] is tasks[1]


async def test_a_web_applications_lifespan_runs_the_app() -> None:
    diary = Diary()
    async with hooks(diary.hook("a")).lifespan(object()):
        assert diary == ["start a"]
    assert diary == ["start a", "stop a"]


async def test_an_app_says_how_far_it_has_come_and_what_it_has_made() -> None:
    seen: list[tuple[str, int]] = []

    class Database: ...

    def note(app: App, _: Database, lifecycle: Lifecycle) -> None:
        def see() -> None:
            seen.append((app.state, len(app.made(Database))))

        lifecycle.append(Hook(on_start=see, on_stop=see))

    app = App(provide(Database), invoke(note))
    assert (app.state, app.made(Database)) == ("stopped", [])
    async with app:
        assert (app.state, app.made(Database)) == ("running", [await app.get(Database)])
        app.shutdown()
        assert app.state == "stopping"
    assert (app.state, app.made(Database)) == ("stopped", [])
    assert seen == [("starting", 1), ("stopping", 1)]
