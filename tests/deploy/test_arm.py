"""Bundles on emulated ARM processors, by qemu and by ssh to a server whose Python is an emulated one."""

import asyncio
import json
import shlex
import shutil
import stat
import sys
import threading
from pathlib import Path

import asyncssh
import pytest

from pipeline.deploy import arm, bundle
from pipeline.ground.errors import PipelineError
from tests.deploy.test_bundle import RUN, called, made, told  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def root():
    if reason := arm.missing():
        pytest.skip(reason)
    try:
        return arm.root()
    except PipelineError as error:
        if "apt-get:" in str(error):
            pytest.skip(str(error))
        raise


def verified(monkeypatch, made, *arguments):  # noqa: F811
    where = [f"runs={made / 'runs'}", f"artifacts={made / 'artifacts'}"]
    called(monkeypatch, *RUN, *where, "task=verify", *arguments)
    return json.loads((made / "artifacts" / "verified.json").read_text())


def instructions(made, folder):  # noqa: F811
    """Those of an inference by the bundle's model alone."""
    model, inputs = (made / "artifacts" / "bundle" / name for name in ("model.onnx", "golden.npz"))
    (found,) = arm.executed(arm.CORTEX_A76, [(model, None)], inputs, folder)
    return found.instructions


@pytest.fixture(scope="module")
def counted(root, made, tmp_path_factory):  # noqa: F811
    return instructions(made, tmp_path_factory.mktemp("counted"))


def test_all_boards_give_the_hosts_answers_and_the_same_counts_twice(made, counted, monkeypatch, tmp_path):  # noqa: F811
    first = verified(monkeypatch, made, "deploy.images=100")
    assert first["status"] == "verified"
    assert first["bundle"] == bundle.digest(made / "artifacts" / "bundle")
    assert set(first["places"]) == {"cortex-a53", "cortex-a72", "cortex-a76"}
    manifest = json.loads((made / "artifacts" / "bundle" / "manifest.json").read_text())
    for place in first["places"].values():
        assert place["bit_identical"]["model.onnx"]
        assert place["difference"]["model.onnx"] == 0
        assert place["scores"]["model.onnx"] == pytest.approx(manifest["scores"]["test"]["int8"], abs=0.1)
        assert place["scores"]["model.onnx, sparse"] == pytest.approx(manifest["scores"]["test"]["float32"], abs=0.1)
        assert place["no_engine"] is None
        counts = place["instructions"]
        assert counts.keys() == {"dense float32"} | place["scores"].keys()
        assert counts["model_fp32.onnx"] == pytest.approx(counts["dense float32"], rel=0.01)
        for by_way in place["milliseconds"].values():
            assert by_way.keys() == counts.keys()
            assert all(0 < least <= most < 3 * least for least, most in by_way.values())
    assert (
        first["places"]["cortex-a76"]["instructions"]["model.onnx"]
        < first["places"]["cortex-a72"]["instructions"]["model.onnx"]
    )
    for model in ("model.onnx, sparse", "model_fp32.onnx, sparse"):  # the Pi 5 has the library that computes in float16
        half, whole = (first["places"][each]["golden_difference"][model] for each in ("cortex-a76", "cortex-a72"))
        assert half > 10 * whole
    boards = {name: each for place in first["places"].values() for name, each in place["milliseconds"].items()}
    fast, slow = (boards[f"Raspberry Pi {name}"]["model.onnx"] for name in ("5", "Zero 2 W"))
    assert max(fast) < min(slow)
    beside = first["places"]["cortex-a76"]["instructions"]["model.onnx"]
    # alone, or beside other models in one process, where malloc takes other ways: 0.7% and 1.05% apart, by weights
    assert counted == pytest.approx(beside, rel=0.02)
    assert instructions(made, tmp_path) == pytest.approx(counted, abs=500)


def test_an_engine_that_is_refused_there_is_told_with_its_reason(root, made, monkeypatch):  # noqa: F811
    monkeypatch.setattr(arm, "PROCESSORS", (arm.CORTEX_A76,))
    (made / "artifacts" / "bundle").rename(made / "artifacts" / "kept")
    shutil.copytree(made / "artifacts" / "kept", made / "artifacts" / "bundle")
    try:
        told(
            made / "artifacts" / "bundle",
            lambda m: m["engine"]["libraries"]["engine-aarch64-fp16.so"].update(tolerance=0),
        )
        place = verified(monkeypatch, made, "deploy.images=10")["places"]["cortex-a76"]
    finally:
        shutil.rmtree(made / "artifacts" / "bundle")
        (made / "artifacts" / "kept").rename(made / "artifacts" / "bundle")
    assert "engine-aarch64-fp16.so computes something else" in place["no_engine"]
    for part in ("scores", "instructions"):
        assert not [name for name in place[part] if name.endswith("sparse")]


def test_a_spoilt_bundle_is_not_verified(root, made, monkeypatch, capsys):  # noqa: F811
    golden = made / "artifacts" / "bundle" / "golden.npz"
    content = golden.read_bytes()
    golden.write_bytes(content[:-1])
    try:
        with pytest.raises(SystemExit) as end:
            verified(monkeypatch, made)
    finally:
        golden.write_bytes(content)
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "golden.npz is not the file that was made" in error
    assert error.count("\n") == 1
    written = json.loads((made / "artifacts" / "verified.json").read_text())
    assert written["status"] == "not verified"
    assert written["reason"] in error


@pytest.mark.parametrize("allowed", ["no setarch", "setarch is not allowed"])
def test_where_addresses_cannot_be_held_instructions_are_counted_all_the_same(
    allowed,
    made,  # noqa: F811
    counted,
    tmp_path,
    monkeypatch,
):
    if allowed == "no setarch":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        script(tmp_path / "setarch", "exit 1")
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    arm.same_addresses.cache_clear()
    try:
        assert instructions(made, tmp_path) == pytest.approx(counted, rel=0.01)
    finally:
        arm.same_addresses.cache_clear()


def test_a_changed_root_is_refused(root, tmp_path, monkeypatch):
    changed = tmp_path / "root"
    shutil.copytree(root, changed, symlinks=True)
    sums = changed / "SHA256SUMS"
    sums.write_text(sums.read_text()[:-10])
    monkeypatch.setattr(arm, "home", lambda: changed)
    with pytest.raises(PipelineError, match="a file of the ARM root has changed: delete"):
        arm.root()


def test_what_boards_import_is_compiled_and_nothing_is_written_beside_it(root, tmp_path):
    program = "import json, pathlib, numpy, onnxruntime, PIL.ImageDraw; "
    program += (
        "print(all(pathlib.Path(each.__cached__).exists() for each in (json, numpy, onnxruntime, PIL.ImageDraw)))"
    )
    before = arm._sums(root)
    assert arm.emulated(arm.CORTEX_A53, ["-c", program], tmp_path) == "True\n"
    arm.emulated(arm.CORTEX_A53, ["-c", "import xml.dom.minidom"], tmp_path)
    assert arm._sums(root) == before


@pytest.fixture
def board(root, tmp_path, monkeypatch):
    """A board by ssh: a real server, whose python3 is that of an emulated Raspberry Pi 4."""
    command, environment = arm.interpreter(arm.CORTEX_A72)
    programs = tmp_path / "programs"
    programs.mkdir()
    told = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items() if key != "PATH")
    script(programs / "python3", f'exec env {told} {shlex.join(command)} "$@"')
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(tmp_path / "key"))
    (tmp_path / "key").chmod(0o600)
    key.write_public_key(str(tmp_path / "key.pub"))
    ready, loop = threading.Event(), asyncio.new_event_loop()
    servers = []

    async def handle(process):
        shell = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", process.command, cwd=tmp_path, env={"PATH": f"{programs}:/usr/bin:/bin"},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await shell.communicate(await process.stdin.read())
        process.stdout.write(out)
        process.stderr.write(err)
        process.exit(shell.returncode)

    async def serve():
        server = await asyncssh.listen(
            "127.0.0.1", 0, server_host_keys=[key], authorized_client_keys=str(tmp_path / "key.pub"),
            process_factory=handle, encoding=None,
        )  # fmt: skip
        servers.append(server)
        ready.set()

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(serve(), loop)
    assert ready.wait(30)
    (tmp_path / "config").write_text(
        f"Host pi\n HostName 127.0.0.1\n Port {servers[0].get_port()}\n User pi\n IdentityFile {tmp_path / 'key'}\n"
        " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
    )
    client = tmp_path / "client"
    client.mkdir()
    script(client / "ssh", f'exec /usr/bin/ssh -F {tmp_path / "config"} "$@"')
    monkeypatch.setenv("PATH", str(client), prepend=":")
    yield tmp_path

    async def end():
        servers[0].close()
        await servers[0].wait_closed()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(end(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def script(path, line):
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.skipif(not Path("/usr/bin/ssh").exists(), reason="no ssh client")
def test_a_board_by_ssh_is_sent_the_bundle_runs_it_and_is_left_clean(board, made, monkeypatch):  # noqa: F811
    before = set(Path("/tmp").glob("tmp.*"))
    found = verified(monkeypatch, made, "deploy.runner=ssh", "deploy.host=pi", "deploy.images=50")
    assert found["status"] == "verified"
    place = found["places"]["ssh"]
    assert place["board"] == "pi"
    assert place["bit_identical"]["model.onnx"]
    assert all(0 < median <= slow for median, slow in place["milliseconds_p50_p95"].values())
    assert set(Path("/tmp").glob("tmp.*")) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="the root is for Linux")
def test_the_emulated_python_is_an_arm_one(root, tmp_path):
    code = "import platform, numpy, onnxruntime; print(platform.machine(), onnxruntime.__version__)"
    import onnxruntime

    assert arm.emulated(arm.CORTEX_A76, ["-c", code], tmp_path).split() == ["aarch64", onnxruntime.__version__]
