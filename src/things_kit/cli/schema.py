"""`things-kit schema`: what topics register, what is registered, and whether the one may follow the other."""

import base64
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from things_kit.cli.asyncapi import AppDir
from things_kit.cli.named import topics_of
from things_kit.cli.options import JsonFlag
from things_kit.cli.printing import as_json, safe, say
from things_kit.cli.running import FAILED, WRONG_USE, CommandFailed, run
from things_kit.messaging.topic import Topic

app = typer.Typer(no_args_is_help=True, help="Schemas of topics, and of a registry.")

Targets = Annotated[
    list[str],
    typer.Argument(metavar="MODULE:TOPIC...", help="Topics, such as shop.orders:orders", show_default=False),
]
RegistryUrl = Annotated[
    str,
    typer.Option(
        "--registry", metavar="URL", help="The registry; a login goes in the URL.", show_default=False
    ),
]


@app.callback()
def schema() -> None:
    """Schemas of topics, and of a registry."""


@app.command()
def check(
    targets: Targets, *, registry: RegistryUrl, json: JsonFlag = False, app_dir: AppDir = Path()
) -> None:
    """Ask whether what topics would register is compatible with what is there. Exit code 1: it is not."""

    async def ask(schemas: Any) -> None:
        broken = False
        for topic in topics_of(targets, app_dir):
            for subject in _subjects(topic, schemas):
                compatible, why = await schemas.compatible(subject)
                broken |= compatible is False
                verdict = {True: "compatible", False: "incompatible", None: "new"}[compatible]
                row = {"topic": topic.name, "subject": subject.name, "verdict": verdict, "reason": why}
                say(
                    as_json(row) if json else safe(f"{verdict:<12} {subject.name}{f': {why}' if why else ''}")
                )
        if broken:
            raise CommandFailed("", FAILED)

    _run(registry, ask)


@app.command()
def register(
    targets: Targets, *, registry: RegistryUrl, json: JsonFlag = False, app_dir: AppDir = Path()
) -> None:
    """Register the schemas of topics, where they are missing."""

    async def ask(schemas: Any) -> None:
        for topic in topics_of(targets, app_dir):
            for subject in _subjects(topic, schemas):
                identity = await schemas.prepare(subject)
                row = {"topic": topic.name, "subject": subject.name, "id": identity}
                say(as_json(row) if json else safe(f"{subject.name} has the id {identity}"))

    _run(registry, ask)


@app.command()
def show(
    targets: Targets,
    *,
    registry: Annotated[
        str | None,
        typer.Option("--registry", metavar="URL", help="Show what is registered too.", show_default=False),
    ] = None,
    app_dir: AppDir = Path(),
) -> None:
    """Print the schemas of topics; with a registry, what is registered too. One object of JSON a line."""

    async def ask(schemas: Any) -> None:
        for topic in topics_of(targets, app_dir):
            for subject in _subjects(topic, schemas):
                row = {
                    "topic": topic.name,
                    "subject": subject.name,
                    "type": subject.kind,
                    "schema": _plain(subject),
                }
                if registry is not None:
                    row["registered"] = await schemas.latest(subject.name)
                say(as_json(row))

    _run(registry, ask)


def _run(url: str | None, ask: Callable[[Any], Awaitable[None]]) -> None:
    from things_kit.codecs.memory_registry import MemoryRegistry  # noqa: PLC0415 - of these commands alone
    from things_kit.codecs.registry import Registry  # noqa: PLC0415 - as above
    from things_kit.codecs.schemas import Away  # noqa: PLC0415 - as above

    async def command() -> None:
        schemas = MemoryRegistry() if url is None else Registry(url)
        try:
            await ask(schemas)
        except Away as away:
            raise CommandFailed(f"{schemas!r} is away: {away}") from away

    run(command)


def _subjects(topic: Topic[Any], schemas: Any) -> Sequence[Any]:
    """What a topic registers with a registry, and what that refers to. Raises CommandFailed where its codec has no schemas."""
    codec: Any = topic.codec
    codec = getattr(codec, "codec", codec)  # the data's of CloudEvents
    if not hasattr(codec, "subjects"):
        what = "is raw" if codec is None else f"is written as {codec.content_type}"
        raise CommandFailed(f"the topic {topic.name!r} {what}, which has no schema in a registry", WRONG_USE)
    found = msgspec.structs.replace(codec, registry=schemas).subjects(topic).values()
    return list(dict.fromkeys(each for subject in found for each in subject.with_imported()))


def _plain(subject: Any) -> Any:
    """The schema as people read it."""
    if subject.kind == "PROTOBUF":
        from google.protobuf.descriptor_pb2 import FileDescriptorProto  # noqa: PLC0415 - as above
        from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - as above

        return MessageToDict(FileDescriptorProto.FromString(base64.b64decode(subject.schema)))
    return msgspec.json.decode(subject.schema)
