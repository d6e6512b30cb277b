"""Does away with what crashes have abandoned, where no child process takes it along: after the verdict, and unheard."""

import gc
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from things_kit.testing.simulation.run import Run

AWAITS: Final = 100
"""How often a coroutine may await something while it is closed, before it is dropped as it is."""


def do_away_with(runs: "list[Run]") -> None:
    """Close all that has not ended in these histories, and forget them."""
    with unheard():
        for run in runs:
            run.close()
        runs.clear()
        gc.collect()


@contextmanager
def unheard() -> Iterator[None]:
    """Nothing that happens meanwhile is printed, warned of or logged."""
    disabled, hook = logging.root.manager.disable, sys.unraisablehook
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    nobody = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(nobody), redirect_stderr(nobody):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook
        logging.disable(disabled)


def close_coroutine(coroutine: Any) -> None:
    """Let it end, whatever it says to that."""
    for _ in range(AWAITS):
        try:
            coroutine.close()
        except KeyboardInterrupt:
            raise
        except RuntimeError:  # it awaits something in its `finally`, or raises this itself: then it has ended
            continue
        except BaseException:  # noqa: BLE001, S110 - of one that is dead
            pass
        return
