"""The process: `python -m things_kit.testing.servers.pubsub_service PORT --journal FILE`."""

import argparse
import asyncio
import base64
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from things_kit.testing.servers.pubsub_service.journal import Journal
from things_kit.testing.servers.pubsub_service.protocol import Code, Proto, Refusal, proto
from things_kit.testing.servers.pubsub_service.service import Service

CALLS: Final = {
    "Publisher": {
        "CreateTopic": "Topic", "UpdateTopic": "UpdateTopicRequest", "GetTopic": "GetTopicRequest",
        "ListTopics": "ListTopicsRequest", "ListTopicSubscriptions": "ListTopicSubscriptionsRequest",
        "DeleteTopic": "DeleteTopicRequest", "Publish": "PublishRequest",
    },
    "Subscriber": {
        "CreateSubscription": "Subscription", "GetSubscription": "GetSubscriptionRequest",
        "UpdateSubscription": "UpdateSubscriptionRequest", "DeleteSubscription": "DeleteSubscriptionRequest",
        "Pull": "PullRequest", "Acknowledge": "AcknowledgeRequest", "Seek": "SeekRequest",
        "ModifyAckDeadline": "ModifyAckDeadlineRequest", "StreamingPull": "StreamingPullRequest",
    },
}  # fmt: skip
"""The calls of each service, with the types of their requests."""


class Door:
    """Where calls come in: checks who calls, and answers with a status what was refused."""

    def __init__(self, service: Service, login: str | None) -> None:
        self._service, self._login = service, login

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a server serves."""
        return [
            grpc.method_handlers_generic_handler(
                f"google.pubsub.v1.{group}", {name: self._handler(name, kind) for name, kind in calls.items()}
            )
            for group, calls in CALLS.items()
        ]

    def _handler(self, name: str, kind: str) -> Any:
        method = getattr(self._service, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())
        made: Callable[..., Any] = grpc.unary_unary_rpc_method_handler
        behaviour = self._unary(method)
        if name == "StreamingPull":
            made, behaviour = grpc.stream_stream_rpc_method_handler, self._stream(method)
        return made(behaviour, proto(kind).FromString, lambda answer: answer.SerializeToString())

    def _unary(self, method: Callable[[Proto], Any]) -> Any:
        async def call(request: Proto, context: Any) -> Any:
            try:
                self._check_login(context)
                return await method(request)
            except Refusal as refusal:
                await _abort(context, refusal)

        return call

    def _stream(self, method: Callable[[AsyncIterator[Proto]], AsyncIterator[Proto]]) -> Any:
        async def call(requests: AsyncIterator[Proto], context: Any) -> AsyncIterator[Proto]:
            try:
                self._check_login(context)
                async with contextlib.aclosing(method(requests)) as answers:  # type: ignore[type-var]
                    async for answer in answers:
                        yield answer
            except Refusal as refusal:
                await _abort(context, refusal)

        return call

    def _check_login(self, context: Any) -> None:
        if self._login is not None:
            given = dict(context.invocation_metadata()).get("authorization", "")
            head = given.removeprefix("Bearer ").partition(".")[0]
            if self._login not in _decoded(head):
                raise Refusal(Code.UNAUTHENTICATED, "Request had invalid authentication credentials.")


def _decoded(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode(errors="replace")


async def _abort(context: Any, refusal: Refusal) -> None:
    if refusal.failures is None:
        await context.abort(refusal.code, refusal.text)
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="ACK", metadata=refusal.failures))
    code = code_pb2.Code.Value(refusal.code.name)
    status = status_pb2.Status(code=code, message=refusal.text, details=[detail])
    await context.abort_with_status(rpc_status.to_status(status))


async def serve(options: argparse.Namespace) -> None:
    """Serve until killed; all connections are broken at SIGUSR1."""
    service = Service(Journal(options.journal))
    cut = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, cut.set)
    ticking = asyncio.create_task(_tick(service))
    while not ticking.done():
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(tuple(Door(service, options.login).handlers()))
        address = f"127.0.0.1:{options.port}"
        if options.cert:
            pair = (options.key.read_bytes(), options.cert.read_bytes())
            server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            server.add_insecure_port(address)
        await server.start()
        await cut.wait()
        cut.clear()
        await server.stop(None)


async def _tick(service: Service) -> None:
    while True:
        await asyncio.sleep(0.05)
        for subscribed in list(service.subscriptions.values()):
            subscribed.expire()
            subscribed.deliver()


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--login", help="the id of the key that callers must have signed with")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
