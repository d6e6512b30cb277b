"""Alembic makes the outbox's tables, and then sees no difference, also once the broker has added what it needs."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, Table, create_engine, func, inspect, select, text
from sqlalchemy.pool import NullPool

from things_kit import ConfigError, Message, connect
from things_kit.patterns import Outbox

ENV = """
from alembic import context
from sqlalchemy import MetaData, create_engine
from sqlalchemy.pool import NullPool
from things_kit.patterns import Outbox

outbox = Outbox(context.config.attributes["schema"])
engine = create_engine(context.config.attributes["url"], poolclass=NullPool)
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=[MetaData(), outbox.metadata_for(connection.dialect.name)],
        include_schemas=connection.dialect.name == "postgresql",
        include_name=outbox.include_name,
    )
    with context.begin_transaction():
        context.run_migrations()
"""
TEMPLATE = """
${imports if imports else ""}
from alembic import op
import sqlalchemy as sa
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade():
    ${upgrades if upgrades else "pass"}


def downgrade():
    ${downgrades if downgrades else "pass"}
"""


def of_sqlalchemy(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def schema(database: str) -> str:
    return (
        "shop" if database.startswith("sqlite") else "my :x shop?"
    )  # Alembic's own queries can have neither quotes nor a percent sign in a name


@pytest.fixture
def config(database: str, schema: str, tmp_path: Path) -> Config:
    scripts = tmp_path / "migrations"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text(ENV)
    (scripts / "script.py.mako").write_text(TEMPLATE)
    config = Config(attributes={"url": of_sqlalchemy(database), "schema": schema})
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    return config


def differences(connection: Connection, outbox: Outbox) -> list[Any]:
    context = MigrationContext.configure(
        connection,
        opts={
            "compare_type": True,
            "compare_server_default": True,
            "include_schemas": connection.dialect.name == "postgresql",
            "include_name": outbox.include_name,
        },
    )
    return list(compare_metadata(context, outbox.metadata_for(connection.dialect.name)))


async def test_after_an_upgrade_autogenerate_sees_no_difference(
    database: str, schema: str, config: Config
) -> None:
    outbox, engine = Outbox(schema), create_engine(of_sqlalchemy(database), poolclass=NullPool)
    command.revision(config, "the outbox", autogenerate=True)
    command.upgrade(config, "head")
    command.check(config)
    with engine.begin() as connection:
        assert differences(connection, outbox) == []
        outbox.publish_sync(connection, Message("orders", b"before the first connect"))
    async with connect(f"{database}?schema={quote(schema, safe='')}") as broker:
        await broker.declare("orders")
        assert await broker.lag("orders", "all of it") == 1
    command.check(config)
    with engine.connect() as connection:
        assert differences(connection, outbox) == []
        inside = None if database.startswith("sqlite") else schema
        installation = Table(
            "shop_installation" if inside is None else "installation", MetaData(schema=inside)
        )
        counted = select(func.count()).select_from(installation).where(text("version > 0"))
        assert connection.execute(counted).scalar() == 1
    command.downgrade(config, "base")
    with engine.connect() as connection:
        inspector = inspect(connection)
        assert schema not in inspector.get_schema_names()
        assert not [name for name in inspector.get_table_names() if name.startswith("shop")]


async def test_the_metadata_makes_tables_that_the_broker_uses(database: str) -> None:
    outbox, engine = Outbox(), create_engine(of_sqlalchemy(database), poolclass=NullPool)
    metadata = outbox.metadata_for(engine.dialect.name)
    metadata.create_all(engine)
    with engine.begin() as connection:
        outbox.publish_sync(connection, Message("orders", b"1"))
        assert differences(connection, outbox) == []
    async with connect(database) as broker:
        await broker.declare("orders")
        assert await broker.lag("orders", "all of it") == 1
    with engine.connect() as connection:
        assert differences(connection, outbox) == []


async def test_tables_that_were_made_by_connecting_are_those_of_the_metadata(database: str) -> None:
    async with connect(database):
        pass
    with create_engine(of_sqlalchemy(database), poolclass=NullPool).connect() as connection:
        assert differences(connection, Outbox()) == []


def test_metadata_of_another_database_is_refused() -> None:
    with pytest.raises(ConfigError, match="this is 'mysql'"):
        Outbox().metadata_for("mysql")
    assert Outbox().metadata.schema == "things_kit"
