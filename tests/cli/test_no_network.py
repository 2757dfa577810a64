import socket
import subprocess
import sys

import pytest


def test_a_connection_fails_here():
    with pytest.raises(AssertionError, match="must not use the network"):
        socket.create_connection(("127.0.0.1", 9), timeout=0.1)


def test_a_connection_fails_in_a_child():
    code = "import socket; socket.getaddrinfo('localhost', 80)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "must not use the network" in done.stderr
