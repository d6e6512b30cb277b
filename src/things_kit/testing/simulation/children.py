"""Runs functions in forked children that end without clean-up: what a simulated crash left behind never runs on."""

import gc
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

ArgumentT = TypeVar("ArgumentT")
ResultT = TypeVar("ResultT")


class ChildFailed(Exception):
    """A child ended without an answer."""


def can_fork() -> bool:
    """Whether there are such children here; Windows has none."""
    return "fork" in multiprocessing.get_all_start_methods()


def in_child(function: Callable[[], ResultT]) -> ResultT:
    """Call it in a child, if there can be one; what it raises is raised here."""
    return next(in_children(lambda _: function(), [None], 1))


def in_children(
    function: Callable[[ArgumentT], ResultT], arguments: Sequence[ArgumentT], workers: int
) -> Iterator[ResultT]:
    """The results in the order of the arguments; `workers` children run at a time, or this process where there are none."""
    if not can_fork():
        for argument in arguments:
            with undisturbed():
                result = function(argument)
            yield result
        return
    waiting, running = deque(arguments), deque[_Child]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_Child(function, waiting.popleft()))
            yield running[0].result()
            running.popleft()
    finally:
        for child in running:
            child.end()


class _Child:
    def __init__(self, function: Callable[[ArgumentT], Any], argument: ArgumentT) -> None:
        self._reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Threads of whoever calls, such as pytest's, hold no lock that a history needs
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if not self._pid:
            os.close(self._reading)
            _answer(function, argument, writing)
        os.close(writing)

    def result(self) -> Any:
        """What the function returned, or raised."""
        with os.fdopen(self._reading, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if not data:
            raise ChildFailed(f"a process of the simulation ended without an answer (status {status})")
        returned, value = pickle.loads(data)  # noqa: S301 - of our own child
        if not returned:
            raise value
        return value

    def end(self) -> None:
        """Its answer is not wanted any more."""
        if self._pid:
            with suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                os.close(self._reading)


def _answer(function: Callable[[ArgumentT], Any], argument: ArgumentT, writing: int) -> None:
    """In the child: call, answer, and be gone."""
    status = 1
    try:
        with undisturbed():
            try:
                answer = (True, function(argument))
            except Exception as error:  # noqa: BLE001 - it goes to whoever asked
                answer = (False, _carried(error))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        sys.stdout.flush()
        sys.stderr.flush()
        status = 0
    finally:
        os._exit(status)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing of a crashed process is cleaned up meanwhile, and of outages and failures that were ordered nothing is logged."""
    collecting, disabled = gc.isenabled(), logging.root.manager.disable
    gc.disable()
    logging.disable(max(disabled, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(disabled)
        if collecting:
            gc.enable()


def _carried(error: Exception) -> Exception:
    """One that can go through a pipe, with its traceback as text."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever it is made of
        return ChildFailed(text)
    error.add_note(text)
    return error
