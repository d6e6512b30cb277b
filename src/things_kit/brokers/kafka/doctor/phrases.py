"""How findings name what they are about."""

from collections.abc import Sequence


def partitions(numbers: Sequence[int]) -> str:
    """Some of a topic's partitions."""
    named = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"partition {named}" if len(numbers) == 1 else f"each of the partitions {named}"


def duration(seconds: float) -> str:
    """For how long, in the unit that people would use."""
    if seconds == float("inf"):
        return "ever"
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"
