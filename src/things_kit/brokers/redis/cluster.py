"""redis-py's client of a cluster, but for one thing."""

from typing import Any

from redis.asyncio import RedisCluster

from things_kit.brokers.redis.errors import closed_meanwhile


class Cluster(RedisCluster):
    """When a node goes, one command can close a connection that another is about to write to: that is an outage."""

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        """Send a command. Raises the client's errors."""
        with closed_meanwhile():
            return await super().execute_command(*words, **options)
