"""``make server``: an MLflow server with PostgreSQL for a team, in one command, on this machine alone.

    <folder>/postgres/      the database
    <folder>/artifacts/     what the server keeps for its clients, who need no access to it

PostgreSQL listens on a Unix socket that its owner alone can open, never on a network. MLflow listens on loopback unless
``--host`` says otherwise; put it behind a proxy with authentication and TLS before you do (docs/sweeps.md).
"""

import argparse
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from pipeline.ground.environment import runs_folder
from pipeline.ground.errors import PipelineError
from pipeline.ground.processes import end_with_parent

PATIENCE = 60.0
"""Seconds for PostgreSQL to answer."""
LEAVING = 30.0
"""Seconds for what was left of a killed server to go."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m pipeline.tracking.server``."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tracking.server", description="MLflow with PostgreSQL for a team."
    )
    parser.add_argument("--folder", type=Path, default=runs_folder(None) / "server", help="where all is kept")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; beyond loopback only if you say so")
    parser.add_argument("--port", type=int, default=5000)
    given, more = parser.parse_known_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    folder = given.folder.resolve()
    try:
        with alone(folder, f"http://{given.host}:{given.port}"), postgresql(folder / "postgres") as uri:
            serve(uri, folder / "artifacts", given.host, given.port, more)
    except PipelineError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped")


@contextmanager
def alone(folder: Path, address: str) -> Iterator[None]:
    """Holds a server's folder, for which one server runs at a time. The lock ends with the process, however that ends.

    Raises:
        PipelineError: if another has it; it says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / "lock"), folder / "owner"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = owner.read_text() if owner.exists() else "another process"
        raise PipelineError(
            f"a server runs for {folder} already: {holder}; use that, stop it, or name another place by --folder"
        ) from None
    try:
        owner.write_text(f"{address}, process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def serve(uri: str, artifacts: Path, host: str, port: int, more: Sequence[str] = ()) -> None:
    """Runs MLflow's server until it ends; ``more`` are options of ``mlflow server``.

    Raises:
        PipelineError: if it ends by itself.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--backend-store-uri", uri, "--artifacts-destination", artifacts.as_uri(), "--workers", "2", *more]
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **os.environ,
    }  # eight processes for what no run here uses
    _wait_for(host, port)
    ends = partial(end_with_parent, signal.SIGTERM)
    server = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=ends)
    print(f"MLflow  http://{host}:{port}  (clients: tracking.uri=http://{host}:{port})", flush=True)
    try:
        server.wait()
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
    raise PipelineError(f"MLflow's server has ended with status {server.returncode}; is port {port} taken?")


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Runs PostgreSQL on the database in ``folder``, made if there is none; gives its address for MLflow.

    Raises:
        PipelineError: if no PostgreSQL is installed, or it does not start.
    """
    programs = _programs()
    user = _user()
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="pipeline-"))  # a socket's path may have a hundred letters
    log = folder.parent / "postgres.log"
    if user is not None:
        for path in (folder, place):
            shutil.chown(path, user)
        folder.chmod(0o700)
    try:
        if not (folder / "PG_VERSION").exists():
            _run([programs / "initdb", "-D", folder, "-U", "mlflow", "--auth=trust", "--encoding=UTF8"], user, log)
        _end_leftover(programs, folder, user)
        options = ["-c", "listen_addresses=", "-c", "unix_socket_permissions=0700"]
        with log.open("ab") as output:
            server = subprocess.Popen(
                [programs / "postgres", "-D", folder, "-k", place, *options],
                user=user, stdout=output, stderr=output, cwd="/", start_new_session=True,
                preexec_fn=partial(end_with_parent, signal.SIGINT),
            )  # fmt: skip
        try:
            _answers(programs, place, server, log)
            yield f"postgresql+psycopg2://mlflow@/postgres?host={place}"
        finally:
            server.send_signal(signal.SIGINT)  # clients are cut off, the database is closed
            server.wait()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _programs() -> Path:
    """The folder of PostgreSQL's programs, of the newest version that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        raise PipelineError("no PostgreSQL is installed: apt-get install postgresql (its service need not run)")
    return (found[-1] if found else Path(str(on_path))).parent


def _user() -> str | None:
    """Who runs PostgreSQL, which refuses to be run by root; None for the present user."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _end_leftover(programs: Path, folder: Path, user: str | None) -> None:
    """Ends a PostgreSQL that outlived the command which started it; a note of one that is gone goes.

    PostgreSQL itself would take any process of the noted number for the one that was.
    """
    note = folder / "postmaster.pid"
    if not note.exists():
        return
    if _serves(note.read_text().partition("\n")[0], folder):
        command: list[str | Path] = [programs / "pg_ctl", "stop", "-D", folder, "-m", "fast"]
        subprocess.run(command, user=user, cwd="/", capture_output=True, check=False)
    else:
        note.unlink(missing_ok=True)


def _serves(process: str, folder: Path) -> bool:
    """Whether the process of a number is a PostgreSQL on the database in ``folder``."""
    try:
        words = Path("/proc", str(int(process)), "cmdline").read_bytes().decode(errors="replace").split("\0")
    except (OSError, ValueError):
        return False
    return Path(words[0]).name in ("postgres", "postmaster") and str(folder) in words


def _wait_for(host: str, port: int) -> None:
    """Waits a while for an address that a server which was killed may hold a moment longer."""
    until = time.monotonic() + LEAVING
    while time.monotonic() < until:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial, suppress(OSError):
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
            return
        time.sleep(0.1)


def _answers(programs: Path, place: Path, server: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while subprocess.run([programs / "pg_isready", "-q", "-h", place], check=False).returncode:
        if server.poll() is not None or time.monotonic() > until:
            raise PipelineError(f"PostgreSQL does not start; {log} says why")
        time.sleep(0.1)


def _run(command: Sequence[str | Path], user: str | None, log: Path) -> None:
    with log.open("ab") as output:
        if subprocess.run(command, user=user, cwd="/", stdout=output, stderr=output, check=False).returncode:
            raise PipelineError(
                f"PostgreSQL cannot make a database in {command[2]}; {log} says why"
                + (
                    f" (run by root it runs as {user}, who must be able to enter: --folder names another place)"
                    if user
                    else ""
                )
            )


def _stop(signum: int, _: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
