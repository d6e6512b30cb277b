"""What the tests of codecs with a registry share."""

import asyncio
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from things_kit import Message, Topic
from things_kit.codecs import MemoryRegistry
from things_kit.codecs.contract import contract_decoder


def decode(topic: Topic[Any], wanted: Any, message: Message) -> Any:
    return contract_decoder(topic, wanted, "the handler h")(message)


class Server:
    """The memory's registry over HTTP, with the faults that a test asks for."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.memory = MemoryRegistry()
        self.calls: list[str] = []
        self.answers: list[tuple[int, bytes]] = []
        self.seen: list[dict[str, str]] = []
        self.compatible: bool | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                server.calls.append(f"{self.command} {self.path}")
                server.seen.append(dict(self.headers))
                if server.answers:
                    status, content = server.answers.pop(0)
                elif server.compatible is not None and self.path.startswith("/compatibility/"):
                    status, content = 200, json.dumps({"is_compatible": server.compatible}).encode()
                else:
                    asked = server.memory.ask(
                        self.command,
                        self.path.partition("?")[0].lstrip("/"),
                        json.loads(body) if body else None,
                    )
                    answer = asyncio.run(asked)
                    status, content = answer.status, json.dumps(answer.body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = answer  # noqa: N815 - as http.server wants them

            def log_message(self, *_: Any) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> Any:
                accepted, address = super().get_request()
                if tls is None:
                    return accepted, address
                return tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False), address

            def handle_error(self, *_: Any) -> None:
                pass

        self.http = Listening(("127.0.0.1", 0), Handler)
        self.url = f"http{'' if tls is None else 's'}://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()
