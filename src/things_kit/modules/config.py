"""The module `config`: typed sections from `config.yaml` and the environment."""

from typing import Final

from things_kit.app.app import App
from things_kit.app.parts import invoke, known_modules, provide
from things_kit.app.parts import module as make_module
from things_kit.app.settings import Section, Settings, SettingsError, section
from things_kit.messaging.errors import ConfigError

BUILT_IN: Final = (
    "logging", "kafka", "memory", "nats", "ops", "postgres", "pubsub", "rabbitmq", "redis", "servicebus", "sqlite", "sqs",
    "telemetry",
)  # fmt: skip
"""Sections that a file may have though an app does without their module: one file may serve several apps."""


def sections_of(app: App) -> dict[str, type]:
    """The sections that an app reads, by their names."""
    return {placed.part.name: placed.part.kind for placed in app if isinstance(placed.part, Section)}


def settings_of(app: App) -> Settings:
    """The configuration of an app. Raises ConfigError with all mistakes."""
    return read(sections_of(app))


def read(kinds: dict[str, type]) -> Settings:
    """The configuration with these sections. Raises ConfigError with all mistakes."""
    elsewhere = [part.name for module in known_modules for part in module.parts if isinstance(part, Section)]
    try:
        return Settings(kinds, known=[*BUILT_IN, *elsewhere])
    except SettingsError as error:
        raise ConfigError(str(error)) from None


def _checked(settings: Settings) -> None:
    """Ask for the configuration, so that its mistakes end the start though nothing else asks."""


module: Final = make_module("config", provide(settings_of), invoke(_checked))
"""Gives every section its class: those of the other modules, and those that `config.section` adds."""

__all__ = ["Settings", "module", "section"]
