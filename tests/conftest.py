"""What all tests share."""

import gc

pytest_plugins = ["pytester"]

gc.disable()


def pytest_collection_finish() -> None:
    """What thousands of collected tests are made of stays, and need not be gone through by each collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()
