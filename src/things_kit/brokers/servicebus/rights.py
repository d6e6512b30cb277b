"""Rights to entities: a token is shown to a connection for each, and another one before it runs out."""

import asyncio
import base64
import hashlib
import hmac
import logging
import time
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote_plus

from things_kit.brokers.servicebus.amqp.conversation import Conversation
from things_kit.brokers.servicebus.options import Settings
from things_kit.engine.errors import sentence
from things_kit.engine.secrets import masked

log = logging.getLogger("things_kit.servicebus")

EARLY: Final = 300.0
"""Seconds before their end in which rights are shown anew; half of it is between two looks at that."""

PATIENCE: Final = 30.0
"""Seconds that this may take."""

HOUR: Final = 3600
"""Seconds for which a token that we sign is good."""

SCOPE: Final = "https://servicebus.azure.net//.default"


class Rights:
    """Those that a connection has been shown. Its methods raise AmqpError, and what a credential raises."""

    def __init__(self, settings: Settings, credential: Any, conversation: Conversation) -> None:
        self._settings = settings
        self._credential = credential
        self._ends: dict[str, float] = {}
        self._conversation = conversation

    @property
    def over(self) -> bool:
        """Whether no more can be shown."""
        return self._conversation.over

    async def show(self, entity: str) -> None:
        """Show the rights to an entity, unless they were shown."""
        if entity not in self._ends:
            await self._show(entity)

    async def keep(self) -> None:
        """Show anew what runs out soon, until that is not possible any more."""
        clock = asyncio.get_running_loop().time
        while not self.over:
            await asyncio.sleep(EARLY / 2)
            for entity in [entity for entity, end in self._ends.items() if end - clock() < EARLY]:
                try:
                    async with asyncio.timeout(PATIENCE):
                        await self._show(entity)
                except Exception as error:  # noqa: BLE001 - whatever a credential raises; the next look tries again
                    log.warning(
                        "the rights to %s could not be shown anew: %s", entity, masked(sentence(error))
                    )

    async def _show(self, entity: str) -> None:
        key, audience = self._settings.options.key, f"amqp://{self._settings.namespace}/{entity}"
        if key is not None:
            kind, until = "servicebus.windows.net:sastoken", int(time.time()) + HOUR
            token = signed(audience, self._settings.options.key_name or "", key.reveal(), until)
        else:
            found = await self._credential.get_token(SCOPE)
            kind, token, until = "jwt", found.token, found.expires_on
        expiration = datetime.fromtimestamp(until, UTC)
        fields = {"operation": "put-token", "type": kind, "name": audience, "expiration": expiration}
        await self._conversation.ask(token, fields)
        # By the loop's clock, as ours on the wall may be set back
        self._ends[entity] = asyncio.get_running_loop().time() + until - time.time()


def signed(audience: str, name: str, key: str, until: int) -> str:
    """A token that shows that its bearer has a shared access key."""
    scope = quote_plus(audience)
    signature = hmac.new(key.encode(), f"{scope}\n{until}".encode(), hashlib.sha256).digest()
    return f"SharedAccessSignature sr={scope}&sig={quote_plus(base64.b64encode(signature))}&se={until}&skn={quote_plus(name)}"
