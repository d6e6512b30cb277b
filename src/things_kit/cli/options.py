"""Arguments and options that several commands share."""

from typing import Annotated

import typer

Url = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="The broker, such as sqlite:///events.db or kafka://localhost:9092",
        show_default=False,
    ),
]
Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="The topic's name", show_default=False)]
DeadLetterTopic = Annotated[
    str,
    typer.Argument(
        metavar="TOPIC", help="The dead letters' own topic, such as orders-dlq", show_default=False
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
