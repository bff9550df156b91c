"""Servers of the tests: on loopback, on a port of their own, ended with all that they started."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request

import psutil


def free_port():
    """A port of loopback that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def family(process):
    """A process and all that it started."""
    mother = psutil.Process(process.pid)
    return [mother, *mother.children(recursive=True)]


def started(command, port, log, **environment):
    """Starts a server whose ``/health`` answers on ``port``."""
    with log.open("ab") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, env={**os.environ, **environment}
        )
    until = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return server
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)


def killed(server):
    """Kills a server and all that it started, at once."""
    for each in family(server):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    server.wait()


def stopped(server):
    """Ends a server as Ctrl-C does; kills what is left."""
    everyone = family(server)
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(30)
    finally:
        for each in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
