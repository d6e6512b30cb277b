"""Django: a message shares the fate of `transaction.atomic()`."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import django
from django.conf import settings

settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}})
django.setup()

from django.db import connection, transaction
from things_kit import ConfigError, Message
from things_kit.patterns import Outbox

outbox = Outbox()
for statement in outbox.ddl("sqlite"):
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
    cursor.execute("SELECT key, value, headers FROM things_kit_message")
    print([tuple(row) for row in cursor.fetchall()])
"""


def test_a_message_shares_the_fate_of_an_atomic_block(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "app.db")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert said.stdout.splitlines() == [
        "Django's connection commits every statement by itself and has no transaction open",
        """[(b'k', b'100 %', '{"a":"b"}')]""",
    ], said.stderr
