"""A run as one page of HTML that needs nothing else: throughput and lag of each group over time, and the faults."""

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from things_kit.testing.soak.plan import FAR, GROUPS
from things_kit.testing.soak.records import read
from things_kit.testing.soak.story import Story, Struck
from things_kit.testing.soak.verdict import Verdict, effects

WIDTH: Final = 1200
HEIGHT: Final = 110
STEP: Final = 1.0
"""Seconds that a point of the curves stands for."""

STYLE: Final = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; color: #1d2433; background: #fff; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1rem; margin: 1.2rem 0 .2rem }
svg { width: 100%; height: auto; background: #f7f8fa; display: block }
.fault { fill: #d64545; opacity: .16 } .fault:hover { opacity: .45 }
.rate { fill: none; stroke: #2563eb; stroke-width: 1.2 } .lag { fill: none; stroke: #d97706; stroke-width: 1.2 }
text { font: 10px system-ui, sans-serif; fill: #667085 }
table { border-collapse: collapse; margin: .6rem 0 } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
th { border-bottom: 1px solid #d0d5dd } .bad { color: #b42318 } .good { color: #067647 } .dim { color: #667085 }
"""


def write_timeline(folder: Path, title: str, verdict: Verdict) -> Path:
    """Write `timeline.html` into the folder of a run."""
    story = Story(read(folder))
    start, end = story.entries[0].at, story.entries[-1].at
    seen = effects(story)
    charts = [_chart(story, group, start, end, seen) for group in ("", *GROUPS)]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>{_summary(verdict)}</p>{_promises(verdict)}"
        "<p class=dim>Blue: messages a second. Orange: the lag that the broker says. Red: faults; point at one to see its effect.</p>"
        f"{''.join(charts)}{_faults(story, start, seen)}</html>"
    )
    path = folder / "timeline.html"
    path.write_text(page, encoding="utf-8")
    return path


def _summary(verdict: Verdict) -> str:
    handled = ", ".join(f"{group} {number:,}" for group, number in verdict.handled.items())
    return f"{verdict.published:,} messages in {verdict.seconds:.0f} s; handled: {handled}; {verdict.dead} dead letters brought back."


def _promises(verdict: Verdict) -> str:
    rows = []
    for promise, findings in verdict.broken.items():
        mark = (
            "<td class=good>kept</td>" if not findings else f"<td class=bad>broken {len(findings)} times</td>"
        )
        examples = "<br>".join(escape(text) for text in findings[:5])
        rows.append(f"<tr><td>{escape(promise)}</td>{mark}<td class=dim>{examples}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _chart(story: Story, group: str, start: float, end: float, seen: dict[str, str]) -> str:
    """One group; without one, what was published."""
    kind = "done" if group else "published"
    counts: dict[int, int] = defaultdict(int)
    for entry in story.of(kind):
        if entry.group == group:
            counts[int((entry.at - start) / STEP)] += 1
    rates = [counts[number] / STEP for number in range(int((end - start) / STEP) + 1)]
    name = {"": "published", FAR: "far: what the bridge brought to the broker beside"}.get(group, group)
    bands = "".join(_band(struck, start, end, seen) for struck in story.struck)
    curve = _curve([(number * STEP, rate) for number, rate in enumerate(rates)], end - start, "rate")
    lags = [(entry.at - start, entry.figures["lag"]) for entry in story.of("lag") if entry.group == group]
    lag = _curve(lags, end - start, "lag") if group else ""
    most = f"at most {max(rates):.0f} a second" + (f", lag {max(y for _, y in lags):.0f}" if lags else "")
    return (
        f"<h2>{escape(name)} <span class=dim>{most}</span></h2>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT + 14}'>{bands}{lag}{curve}{_ticks(end - start)}</svg>"
    )


def _curve(points: Sequence[tuple[float, float]], seconds: float, style: str) -> str:
    most = max((y for _, y in points), default=0.0) or 1.0
    places = " ".join(f"{x / seconds * WIDTH:.1f},{HEIGHT - y / most * (HEIGHT - 8):.1f}" for x, y in points)
    return f"<polyline class={style} points='{places}'/>"


def _band(struck: Struck, start: float, end: float, seen: dict[str, str]) -> str:
    left = (struck.began - start) / (end - start) * WIDTH
    width = max(2.0, (struck.over - struck.began) / (end - start) * WIDTH)
    told = escape(f"{struck.fault} {struck.victim}: {seen[struck.id] or 'no effect seen'}")
    return (
        f"<rect class=fault x={left:.1f} y=0 width={width:.1f} height={HEIGHT}><title>{told}</title></rect>"
    )


def _ticks(seconds: float) -> str:
    every = 60 if seconds <= 1200 else 300
    return "".join(
        f"<text x={second / seconds * WIDTH:.0f} y={HEIGHT + 11}>{second // 60} min</text>"
        for second in range(0, int(seconds), every)
    )


def _faults(story: Story, start: float, seen: dict[str, str]) -> str:
    recovered: dict[str, list[str]] = defaultdict(list)
    for entry in story.of("recovered"):
        seconds = entry.figures["seconds"]
        recovered[entry.id].append(f"{entry.group} {seconds:.1f} s" if seconds >= 0 else f"{entry.group} not")
    rows = "".join(
        f"<tr><td>{struck.began - start:.0f} s</td><td>{escape(struck.fault)}</td><td>{escape(struck.victim)}</td>"
        f"<td>{escape(seen[struck.id]) or '<span class=bad>no effect seen</span>'}</td>"
        f"<td>{escape(', '.join(recovered[struck.id]))}</td></tr>"
        for struck in story.struck
    )
    return f"<h2>Faults</h2><table><tr><th>at<th>fault<th>whom<th>effect<th>recovered after{rows}</table>"
