"""What an `sqs://` URL asks for, and what its clients are made with."""

import asyncio

import pytest

pytest.importorskip("aiobotocore")


from tests.brokers.sqs.given import settings
from things_kit import ConfigError, connect
from things_kit.brokers.sqs.clients import Clients
from things_kit.brokers.sqs.options import SNS_BYTES, SQS_BYTES


class TestOptions:
    @pytest.mark.parametrize(
        ("url", "sentence"),
        [
            ("sqs://us-east-1/path", "expected sqs://REGION"),
            ("sqs://a,b", "expected sqs://REGION"),
            ("sqs://us-east-1:80", "expected sqs://REGION"),
            ("sqs://key:geheim@us-east-1", "credentials do not belong into the URL"),
            ("sqs://us-east-1?endpoint=127.0.0.1:4566", "'endpoint' must be http"),
            ("sqs://us-east-1?endpoint=http://u:geheim@host", "'endpoint' must be http"),
            ("sqs://us-east-1?lease=0", "lease must be from 1"),
            ("sqs://us-east-1?lease=0.5", "'lease'"),
            ("sqs://us-east-1?poll=21", "poll must be from 1 to 20"),
            ("sqs://us-east-1?account=12", "twelve digits"),
            ("sqs://us-east-1?mode=stack", "'mode'"),
            ("sqs://us-east-1?max_message_bytes=300000", "topic.MaximumMessageSize"),
            ("sqs://us-east-1?queue.=1", "expected queue.NAME=VALUE"),
            ("sqs://us-east-1?topic.MaximumMessageSize=big", "must be a number"),
            ("sqs://us-east-1?wait=1", "unknown option 'wait'"),
        ],
    )
    def test_what_is_not_understood_is_said(self, url: str, sentence: str) -> None:
        with pytest.raises(ConfigError, match=sentence) as raised:
            connect(url)
        assert "geheim" not in str(raised.value)

    def test_attributes_are_handed_on(self) -> None:
        asked = settings("queue.KmsMasterKeyId=alias/a&topic.KmsMasterKeyId=alias/b")
        assert asked.attributes_of_queue("q")["KmsMasterKeyId"] == "alias/a"
        assert asked.attributes_of_queue("q")["MessageRetentionPeriod"] == "1209600"
        assert asked.attributes_of_queue("q.fifo")["FifoQueue"] == "true"
        assert asked.attributes_of_topic("t.fifo") == {"KmsMasterKeyId": "alias/b", "FifoTopic": "true"}

    def test_a_message_may_be_as_large_as_aws_takes(self) -> None:
        assert settings().bytes_at_once == SNS_BYTES
        assert settings("mode=queue").bytes_at_once == SQS_BYTES
        assert settings("topic.MaximumMessageSize=1048576").bytes_at_once == SQS_BYTES

    async def test_there_are_as_many_connections_as_requests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Above a hundred consumers, each of which waits for messages, nobody could publish any more."""
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
        connected = asyncio.Event()
        writers: list[asyncio.StreamWriter] = []

        async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            if len(writers) == 150:
                connected.set()

        async with await asyncio.start_server(silent, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            clients = Clients(settings(f"endpoint=http://127.0.0.1:{port}"))
            await clients.open()
            polls = [
                asyncio.ensure_future(clients.sqs.receive_message(QueueUrl="url", WaitTimeSeconds=20))
                for _ in range(150)
            ]
            try:
                await asyncio.wait_for(connected.wait(), 20)
            finally:
                for poll in polls:
                    poll.cancel()
                await asyncio.gather(*polls, return_exceptions=True)
                await clients.close()
                for writer in writers:
                    writer.close()

    async def test_without_credentials_there_is_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
        with pytest.raises(ConfigError, match="there are no AWS credentials"):
            await connect("sqs://us-east-1?publish_timeout=5").open()

    async def test_an_unknown_profile_has_a_sentence(self) -> None:
        with pytest.raises(ConfigError, match="no-such-profile"):
            await connect("sqs://us-east-1?profile=no-such-profile").open()
