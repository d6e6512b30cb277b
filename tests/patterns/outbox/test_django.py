"""Django: a message shares the fate of `transaction.atomic()`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from things_kit.testing.servers.postgres import PostgresServer

PROGRAM = """
import json
import sys
import django
from django.conf import settings

settings.configure(DATABASES={"default": json.loads(sys.argv[1])})
django.setup()

from django.db import connection, transaction
from things_kit import ConfigError, Message
from things_kit.patterns import Outbox

outbox = Outbox()
for statement in outbox.ddl(connection.vendor):
    connection.cursor().execute(statement)
try:
    outbox.publish_sync(connection, Message("orders", b"by itself"))
except ConfigError as error:
    print(str(error).partition(":")[0])
with transaction.atomic():
    outbox.publish_sync(connection, Message("orders", b"100 %", b"k", {"a": "b"}))
    try:
        with transaction.atomic():
            outbox.publish_sync(connection, Message("orders", b"undone"))
            raise KeyError
    except KeyError:
        pass
with connection.cursor() as cursor:
    table = "things_kit_message" if connection.vendor == "sqlite" else "things_kit.message"
    cursor.execute(f"SELECT key, value, headers FROM {table}")
    print([tuple(bytes(each) if isinstance(each, memoryview) else each for each in row) for row in cursor.fetchall()])
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "sqlite":
        yield {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "app.db")}
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.database() as url:
        at = urlsplit(url)
        yield {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": at.hostname,
            "PORT": at.port,
            "USER": at.username,
            "NAME": at.path[1:],
        }


def test_a_message_shares_the_fate_of_an_atomic_block(database: dict[str, Any]) -> None:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(database)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert said.stdout.splitlines() == [
        "Django's connection commits every statement by itself and has no transaction open",
        """[(b'k', b'100 %', '{"a":"b"}')]""",
    ], said.stderr
