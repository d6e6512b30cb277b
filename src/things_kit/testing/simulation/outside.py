"""What a simulation cannot have, by where code reaches for it."""

import _thread
import asyncio
import multiprocessing.process
import os
import socket
import subprocess
import sys
import sysconfig
import threading
import traceback
from asyncio import base_events, events
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

try:
    import _posixsubprocess as posix
except ModuleNotFoundError:  # Windows, which makes its subprocesses by another
    posix = None  # type: ignore[assignment]

OWN: Final = str(Path(__file__).parent)
STANDARD: Final = sysconfig.get_path("stdlib") + os.sep

REFUSED: Final[tuple[tuple[str, Any, str], ...]] = (
    ("threads", threading.Thread, "start"),
    ("threads", _thread, "start_new_thread _start_new_thread start_joinable_thread"),
    ("sockets", socket.socket, "connect connect_ex bind listen sendto sendmsg"),
    (
        "sockets",
        socket,
        "create_connection getaddrinfo gethostbyname gethostbyname_ex gethostbyaddr getnameinfo",
    ),
    ("subprocesses", subprocess.Popen, "__init__"),
    ("subprocesses", multiprocessing.process.BaseProcess, "start"),
    ("subprocesses", posix, "fork_exec"),
    ("subprocesses", os, "fork forkpty system popen posix_spawn posix_spawnp execv execve startfile"),
    ("event loops of its own", base_events.BaseEventLoop, "__init__"),
    ("event loops of its own", asyncio, "set_event_loop_policy"),
)
"""What there is none of, in which object, by which names; some are not there on every system and Python."""

OF_LOOPS: Final[tuple[tuple[str, str], ...]] = (
    (
        "sockets",
        "create_connection create_server create_unix_connection create_unix_server create_datagram_endpoint",
    ),
    (
        "sockets",
        "sock_connect sock_accept sock_recv sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall sock_sendto",
    ),
    (
        "sockets",
        "add_reader add_writer connect_accepted_socket start_tls sendfile sock_sendfile getaddrinfo getnameinfo",
    ),
    ("pipes", "connect_read_pipe connect_write_pipe"),
    ("subprocesses", "subprocess_exec subprocess_shell"),
    ("signals", "add_signal_handler"),
)
"""The same of a loop's methods."""


def refused(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[str, Any, str]]:
    """What there is none of, the object that has it, and the name there."""
    for what, target, names in (*REFUSED, *((what, loop, names) for what, names in OF_LOOPS)):
        for name in names.split():
            if hasattr(target, name):
                yield what, target, name
    uvloop = sys.modules.get("uvloop")
    if uvloop is not None:
        yield "event loops of its own", uvloop, "new_event_loop"


def policy_of_uvloop() -> bool:
    """Whether event loops that anybody makes would be uvloop's."""
    policy = getattr(events, "_event_loop_policy", None)  # asked for, Python 3.14 warns
    return type(policy).__module__.partition(".")[0] == "uvloop"


def line() -> str:
    """Where the code under simulation is: the innermost frame that is neither ours nor the standard library's."""
    for frame in reversed(traceback.extract_stack()):
        name = frame.filename
        standard = name.startswith(("<frozen", STANDARD)) and "site-packages" not in name
        if not standard and not name.startswith(OWN):
            return f"{name}:{frame.lineno}: {frame.line}"
    return "somewhere"
