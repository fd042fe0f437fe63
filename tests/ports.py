"""A port for processes that must agree on it before one of them listens."""

from __future__ import annotations

import errno
import random
import socket


def free_port() -> int:
    """A port that nobody listens on, below those that systems give out themselves: no other program gets it by chance.

    Linux gives out 32768 to 60999, macOS and Windows 49152 to 65535. Tests run side by side, so each takes any.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
                return port
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
    raise AssertionError("100 ports are taken")
