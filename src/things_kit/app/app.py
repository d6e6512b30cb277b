"""The app: parts, put together and run."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar, get_args, get_origin, overload

from things_kit.app.lifecycle import STOP_TIMEOUT, Lifecycle
from things_kit.app.parts import Module, Part, Placed, flatten, name_of
from things_kit.app.signature import finish
from things_kit.app.wiring import Graph

log = logging.getLogger("things_kit.app")

T = TypeVar("T")

State: TypeAlias = Literal["stopped", "starting", "running", "stopping"]

Loop: TypeAlias = Literal["auto", "asyncio", "uvloop"]
"""Which event loop an app runs on; `auto` is that of uvloop where it is installed."""


class App:
    """An application, put together from modules, providers and functions to call at start.

    `run()` runs it until a signal; `async with app:` runs it inside a test, `app.lifespan` inside a web framework.
    What is given to `App` is resolved by type when it starts; one app may be started again after it has stopped.

    Attributes:
        parts: What it was given.
        worker: Which of the workers of `things-kit run --workers N` it runs in, from 1.
    """

    def __init__(self, *parts: Part, stop_timeout: float = STOP_TIMEOUT) -> None:
        """Put an app together; nothing is made or checked before it starts.

        Args:
            parts: Modules, and what `provide` and `invoke` return.
            stop_timeout: The most seconds that stopping one hook may take that does not say itself.
        """
        self.parts = parts
        self.worker = 1
        self._stop_timeout = stop_timeout
        self._running: Running | None = None

    def __iter__(self) -> Iterator[Placed]:
        """All parts, those of modules in their place, with the names of their modules."""
        return flatten(self.parts)

    def __repr__(self) -> str:
        names = [part.name if isinstance(part, Module) else repr(part) for part in self.parts]
        return f"<App {', '.join(names)}>"

    def check(self) -> None:
        """See whether all parts fit together, without making anything. Raises WiringError with all mistakes."""
        self._graph({App: self, Lifecycle: Lifecycle()})

    def run(self, *, loop: Loop = "auto") -> None:
        """Run until SIGINT or SIGTERM, or until something breaks; then drain and stop.

        A second signal ends the process at once.

        Args:
            loop: The event loop: `asyncio`'s own, `uvloop`'s, or `auto`: that of uvloop where it is installed.

        Raises:
            ModuleNotFoundError: uvloop is asked for, and not installed.
            RuntimeError: An event loop runs here already.
            SystemExit: With a code other than 0 and after the reason was logged, if it did not start, broke, or did
                not stop cleanly.
        """
        if asyncio._get_running_loop() is not None:  # noqa: SLF001 - public, but raises where there is none
            raise RuntimeError(
                "App.run() has an event loop of its own, and one runs here already: use `async with app:`, or await its "
                "start()"
            )
        from things_kit.app.process import run  # noqa: PLC0415 - a test that enters the app needs no signals

        code = run(self, loop)
        if code:
            raise SystemExit(code)

    async def start(self, *, report: Callable[[Exception], object] | None = None) -> None:
        """Resolve all parts, call what is invoked, start the hooks.

        Args:
            report: Is told what failed, while the app's logging is still set up.

        Raises:
            WiringError: The parts do not fit together.
            Exception: What the first failing part raised. What had started is stopped again.
        """
        if self._running is not None:
            raise RuntimeError("this app runs already")
        lifecycle = Lifecycle(self._stop_timeout)
        graph = self._graph({App: self, Lifecycle: lifecycle})
        self._running = running = Running(graph, lifecycle, self._stop_timeout, report)
        try:
            await running.begin()
        except BaseException:
            self._running = None
            raise

    async def stop(self) -> None:
        """Stop the hooks and clean up, both in reverse, all of it even if something fails. Stopping twice is fine.

        Raises:
            ExceptionGroup: What failed meanwhile, after all was stopped.
        """
        running = self._running
        if running is None:
            return
        try:
            await running.end()
        finally:
            self._running = None
        unclean = running.unclean()
        if unclean is not None:
            raise unclean

    async def wait(self) -> None:
        """Wait until something asks the app to stop. Raises what broke."""
        await self._started.lifecycle.wait()

    def shutdown(self, failure: BaseException | None = None) -> None:
        """Ask the running app to stop, as a signal does; with a failure, it ends with that."""
        self._started.lifecycle.shutdown(failure)

    @overload
    async def get(self, kind: Callable[..., T]) -> T: ...

    @overload
    async def get(self, kind: object) -> Any: ...

    async def get(self, kind: Any) -> Any:
        """What the running app has of this type, made now if nobody needed it yet.

        `Annotated[Producer, "kafka"]` is that of the module of this name. Raises WiringError for none, or several.
        """
        asked, owner = kind, None
        if get_origin(asked) is Annotated:
            asked, owner = get_args(asked)[:2]
        running = self._started
        return await running.container.get(running.graph.find(asked, owner))

    @overload
    def dependency(self, kind: Callable[..., T]) -> Callable[[], Awaitable[T]]: ...

    @overload
    def dependency(self, kind: object) -> Callable[[], Awaitable[Any]]: ...

    def dependency(self, kind: Any) -> Callable[[], Awaitable[Any]]:
        """An async function without parameters that does `get`: for FastAPI, `Depends(app.dependency(Producer))`."""

        async def resolve() -> Any:
            return await self.get(kind)

        return resolve

    def made(self, kind: type[T]) -> list[T]:
        """All that the running app has made of this type so far, and not yet cleaned up; none where it does not run."""
        made = self._running.container.made.values() if self._running is not None else ()
        return [thing for thing in made if isinstance(thing, kind)]

    @property
    def state(self) -> State:
        """How far it has come. It is stopping from the moment in which it is asked to."""
        return "stopped" if self._running is None else self._running.state

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        failure = self._started.lifecycle.failure if self._running is not None else None
        await self.stop()
        if failure is not None and error is None:
            raise failure

    @asynccontextmanager
    async def lifespan(self, _: object = None) -> AsyncIterator[None]:
        """Run as long as a web application: `Starlette(lifespan=app.lifespan)`, `FastAPI(lifespan=app.lifespan)`.

        If something breaks, the process is asked to stop as by SIGTERM, where a server listens to that.
        """
        async with self:
            watching = asyncio.create_task(self._watch())
            try:
                yield
            finally:
                watching.cancel()

    async def _watch(self) -> None:
        try:
            await self.wait()
        except Exception:
            log.exception("the app broke")
        if callable(signal.getsignal(signal.SIGTERM)):  # else it would kill the process, instead of asking it
            signal.raise_signal(signal.SIGTERM)

    def _graph(self, given: dict[type, Any], more: Sequence[Part] = ()) -> Graph:
        return Graph([*self.parts, *more], given)

    @property
    def _started(self) -> "Running":
        if self._running is None:
            raise RuntimeError("this app does not run: use `async with app:`, or await its start()")
        return self._running


class Running:
    """One run of an app: what was made, and what has started.

    All of it happens in one task, as what a generator has entered must be left by the same task.
    """

    def __init__(
        self,
        graph: Graph,
        lifecycle: Lifecycle,
        stop_timeout: float,
        report: Callable[[Exception], object] | None = None,
    ) -> None:
        from things_kit.app.container import Container  # noqa: PLC0415 - an extra, needed only to run

        self.graph = graph
        self.lifecycle = lifecycle
        self.container = Container(graph, stop_timeout=stop_timeout)
        self._report = report
        self._leave = asyncio.Event()
        self._up = False
        self._errors: list[Exception] = []

    async def begin(self) -> None:
        """Start everything. Raises what failed, after what had started is stopped again."""
        started = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(started), name="app")
        try:
            await asyncio.wait({self._life, started}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as cancelled:
            self._life.cancel()
            await asyncio.wait({self._life})
            raise cancelled from self.unclean()
        if self._life.done():
            await self._life  # raises

    async def end(self) -> None:
        """Stop everything. Whoever gives up waiting leaves nothing half stopped."""
        self._leave.set()
        try:
            await asyncio.shield(self._life)
        except asyncio.CancelledError:
            await asyncio.wait({self._life})
            raise

    @property
    def state(self) -> State:
        """How far it has come."""
        if self._leave.is_set() or self.lifecycle.ending:
            return "stopping"
        return "running" if self._up else "starting"

    def unclean(self) -> ExceptionGroup[Exception] | None:
        """What failed while everything stopped."""
        return ExceptionGroup("the app did not stop cleanly", self._errors) if self._errors else None

    async def _live(self, started: asyncio.Future[None]) -> None:
        try:
            await self._start()
            self._up = True
            log.info("ready")
            started.set_result(None)
            await self._leave.wait()
        except Exception as failure:
            if self._report is not None:
                self._report(failure)
            raise
        finally:
            self._errors += [*await self.lifecycle.stop(), *await self.container.close(outlasting=False)]
            for error in self._errors:
                log.error("while the app stopped: %s", error, exc_info=error)
            if self._up:
                done = ", ".join(f"{number} {what}" for what, number in self.lifecycle.tally.items())
                log.info("stopped%s", f": {done}" if done else "")
            self._errors += await self.container.close(outlasting=True)

    async def _start(self) -> None:
        """Call what is invoked, in order; then start the hooks that this has added."""
        for call in self.graph.calls:
            positional, named = await self.container.arguments(call)
            try:
                await finish(call.part.source(*positional, **named), name_of(call.part.source))
            except Exception as error:
                error.add_note(f"in {call.label}")
                raise
        await self.lifecycle.start()
