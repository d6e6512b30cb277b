"""`python -m things_kit.testing.soak`: soak a broker that can be started here."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from things_kit.testing.soak.screen import Progress, table
from things_kit.testing.soak.subjects import SUBJECTS
from things_kit.testing.soak.timeline import write_timeline
from things_kit.testing.soak.verdict import judge
from things_kit.testing.soak.world import soak

PROGRAM = "python -m things_kit.testing.soak"


def main(
    broker: Annotated[str, typer.Option(help=f"One of: {', '.join(SUBJECTS)}.")] = "sqlite",
    minutes: Annotated[float, typer.Option(help="For how long faults come.")] = 15.0,
    seed: Annotated[int, typer.Option(help="The same seed has the same faults.")] = 1,
    rate: Annotated[float, typer.Option(help="Messages a second of each of two producers.")] = 8.0,
    folder: Annotated[Path | None, typer.Option(help="Where all is kept; empty or missing.")] = None,
) -> None:
    """Use a broker as many do, break all around it, and see whether it keeps what was promised."""
    if broker not in SUBJECTS:
        raise typer.BadParameter(
            f"{broker!r} cannot be soaked; {', '.join(SUBJECTS)} can", param_hint="--broker"
        )
    kept = Path(tempfile.mkdtemp(prefix=f"soak-{broker}-")) if folder is None else folder
    kept.mkdir(parents=True, exist_ok=True)
    if any(kept.iterdir()):
        raise typer.BadParameter(f"{kept} is not empty", param_hint="--folder")
    console = Console(highlight=False, markup=False)
    progress = Progress(console, minutes)

    async def run() -> str:
        async with SUBJECTS[broker](kept) as subject:
            await soak(subject, kept, minutes=minutes, seed=seed, rate=rate, show=progress)
            return subject.about

    about = asyncio.run(run())
    progress.end()
    verdict = judge(kept)
    title = f"{broker} ({about}), {minutes:g} minutes, seed {seed}"
    (kept / "verdict.json").write_bytes(msgspec.json.format(msgspec.json.encode(verdict)))
    console.print(table(title, verdict))
    console.print(f"timeline: {write_timeline(kept, title, verdict)}", soft_wrap=True)
    raise typer.Exit(0 if verdict.kept else 1)


if __name__ == "__main__":
    typer.run(main)
