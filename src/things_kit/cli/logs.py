"""What the library logs while a command runs: a sentence each, for people."""

import logging

from things_kit.cli.printing import complain


class Sentences(logging.Handler):
    """Prints records like all other complaints: without tracebacks, and safe for a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        try:
            complain(record.getMessage())
        except Exception:  # noqa: BLE001 - as every handler of the standard library: logging breaks nothing
            self.handleError(record)


def show_warnings() -> None:
    """From now on, show the library's warnings, such as of a broker that is away for a while."""
    logger = logging.getLogger("things_kit")
    logger.addHandler(Sentences(logging.WARNING))
    logger.propagate = False


def show_no_warnings() -> None:
    """Take that back."""
    logger = logging.getLogger("things_kit")
    for handler in [each for each in logger.handlers if isinstance(each, Sentences)]:
        logger.removeHandler(handler)
    logger.propagate = True
