"""Loaded by every Python that the tests start: whoever opens a connection or resolves a name fails."""

import sys

FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")


def refuse(event: str, _arguments: object) -> None:
    """Raise on any event that leads to the network."""
    if event in FORBIDDEN:
        raise AssertionError(f"codesign must not use the network, but did: {event}")


sys.addaudithook(refuse)
