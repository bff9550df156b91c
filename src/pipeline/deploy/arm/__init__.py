"""ARM without a board: an aarch64 root of Debian packages and PyPI wheels, run under qemu's user emulation.

``root`` builds it once into the cache folder (``python -m pipeline.deploy.arm``, ``make arm-root``); a digest of every
file in it is checked before each use. Nothing is installed on the machine: qemu itself is unpacked there too.
"""

import functools
import hashlib
import importlib.metadata
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from filelock import FileLock

from pipeline.ground.environment import cache_folder
from pipeline.ground.errors import PipelineError

PYTHON = "3.11"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCES = f"""\
deb [signed-by={KEYRING}] http://deb.debian.org/debian bookworm main
deb [signed-by={KEYRING}] http://deb.debian.org/debian bookworm-updates main
deb [signed-by={KEYRING}] http://deb.debian.org/debian-security bookworm-security main
"""
"""Where packages come from, whatever the machine's own release is."""
PACKAGES = (
    "libc6", "libstdc++6", "libgcc-s1", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5",
    "libsqlite3-0", "libuuid1", "libcrypt1", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
)  # fmt: skip
HOST_PACKAGES = (
    "qemu-user", "libcapstone4", "libglib2.0-0", "libgmp10", "libgnutls30", "libhogweed6", "libidn2-0", "libnettle8",
    "libnuma1", "libp11-kit0", "libpcre2-8-0", "libtasn1-6", "libunistring2", "liburing2", "zlib1g",
)  # fmt: skip
WHEELS = ("onnxruntime", "numpy", "pillow", "flatbuffers", "protobuf", "packaging", "typing_extensions")
PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")
PLUGIN = Path(__file__).with_name("count.c")
COUNTED = Path(__file__).with_name("count.py")


@dataclass(frozen=True)
class Processor:
    """A processor that qemu knows, and what Linux says of it in ``/proc/cpuinfo``."""

    name: str
    board: str
    part: str
    variant: str
    revision: int
    features: str

    @property
    def cpuinfo(self) -> str:
        """Four cores of it."""
        return "".join(
            f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: {self.variant}\nCPU part\t: {self.part}\n"
            f"CPU revision\t: {self.revision}\n\n"
            for core in range(4)
        )


PROCESSORS = (
    Processor("cortex-a72", "Raspberry Pi 4", "0xd08", "0x0", 3, "fp asimd evtstrm crc32 cpuid"),
    Processor(
        "cortex-a76",
        "Raspberry Pi 5",
        "0xd0b",
        "0x4",
        1,
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
)


def home() -> Path:
    """Where the root is kept: one folder a recipe."""
    recipe = json.dumps([PYTHON, SOURCES, PACKAGES, HOST_PACKAGES, _wheels(), PLATFORMS, PLUGIN.read_text()])
    return cache_folder() / f"arm-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def missing() -> str | None:
    """Why ARM cannot be emulated on this machine, if it cannot."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"ARM is emulated on Linux on x86-64 alone, and this is {platform.system()} on {platform.machine()}"
    lacking = [tool for tool in ("apt-get", "dpkg", "gcc") if shutil.which(tool) is None]
    lacking += [] if KEYRING.exists() else [f"{KEYRING} (apt-get install debian-archive-keyring)"]
    if lacking and not (home() / "SHA256SUMS").exists():
        return f"the ARM root cannot be built without {', '.join(lacking)}"
    return None


def root() -> Path:
    """The folder of the root, built if it is not there.

    Raises:
        PipelineError: if it cannot be built here, or a file in it has changed.
    """
    if reason := missing():
        raise PipelineError(reason)
    place = home()
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not place.exists():
            unfinished = place.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            try:
                _build(unfinished)
            except subprocess.CalledProcessError as error:
                said = error.stderr.strip().splitlines()
                raise PipelineError(
                    f"the ARM root cannot be built: {error.cmd[0]}: {said[-1] if said else error.returncode}"
                ) from error
            unfinished.rename(place)
    if (place / "SHA256SUMS").read_text() != _sums(place):
        raise PipelineError(f"a file of the ARM root has changed: delete {place}, and it is built again")
    return place


def interpreter(processor: Processor, plugin: Path | None = None) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of Python on an emulated processor.

    ``plugin`` names a file that the counts of executed instructions go to.
    """
    place = root()
    system = place / processor.name
    counting = [] if plugin is None else ["-plugin", f"{place / 'host' / 'count.so'},counts={plugin}"]
    # LD_LIBRARY_PATH is for qemu, which keeps it from the program: that has the root's libraries
    command = [
        *([] if plugin is None else same_addresses()),
        str(place / "host/usr/bin/qemu-aarch64"), "-seed", "0", "-cpu", processor.name, "-L", str(system),
        *counting, "-U", "LD_LIBRARY_PATH", str(system / f"usr/bin/python{PYTHON}"),
    ]  # fmt: skip
    return command, {
        "PYTHONPATH": str(place / "wheels"),
        "PYTHONHOME": str(system / "usr"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",  # instructions of every thread are counted
        "ORT_DISABLE_TELEMETRY": "1",
        "PATH": "/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(place / "host/usr/lib/x86_64-linux-gnu"),
    }


@functools.cache
def same_addresses() -> list[str]:
    """What runs a command with the same addresses each time, which else change counts a little.

    Nothing where that is not allowed, as in a container.
    """
    command = ["setarch", "-R"]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        allowed = False
    return command if allowed else []


def emulated(processor: Processor, arguments: Sequence[str], folder: Path, plugin: Path | None = None) -> str:
    """What Python on an emulated processor prints, run in ``folder`` with ``arguments``.

    Raises:
        PipelineError: with the program's own last line, if it fails.
    """
    command, environment = interpreter(processor, plugin)
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise PipelineError(f"{processor.name} (qemu): {said[-1] if said else f'status {done.returncode}'}")
    return done.stdout


Way = tuple[Path, Path | None]
"""A model, and the sparse engine's library if that computes it."""


def instructions(processor: Processor, ways: Sequence[Way], inputs: Path, folder: Path) -> list[int]:
    """Executed instructions of one inference, by each way; its input the first of ``inputs``; one thread.

    Each is the median of seven, in one process whose addresses, random bytes and arguments are the same each time.
    Counts repeat to a few hundred: after some seconds, which a busy machine may make of a moment, an onnxruntime
    session does a little more in one inference or two.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place, written = Path(name), folder / f"{processor.name}.counts"
        (place / "inputs.npz").symlink_to(inputs.resolve())
        for number, (model, library) in enumerate(ways):
            (place / f"{number:02}.onnx").symlink_to(model.resolve())
            if library is not None:
                (place / f"{number:02}.so").symlink_to(library.resolve())
        emulated(processor, [str(COUNTED), "inputs.npz"], place, plugin=written)
    marks = [int(line) for line in written.read_text().split()]
    each = len(marks) // len(ways)
    of_each = [[later - mark for mark, later in pairwise(marks[at : at + each])] for at in range(0, len(marks), each)]
    return [round(statistics.median(counts)) for counts in of_each]


def emulator() -> str:
    """Name and version of the emulator."""
    place = root()
    environment = {"LD_LIBRARY_PATH": str(place / "host/usr/lib/x86_64-linux-gnu")}
    qemu = place / "host/usr/bin/qemu-aarch64"
    said = subprocess.run([qemu, "--version"], env=environment, capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0]


def _wheels() -> list[str]:
    """The wheels of the root, each of the version that is installed here."""
    wheels = []
    for name in WHEELS:
        try:
            wheels.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return wheels


def _build(place: Path) -> None:
    archives = place / "archives"
    for architecture, packages, target in (("arm64", PACKAGES, "base"), ("amd64", HOST_PACKAGES, "host")):
        for archive in _downloaded(archives / architecture, architecture, packages):
            _call("dpkg", "-x", str(archive), str(place / target))
    wheels = archives / "wheels"
    platforms = [word for each in PLATFORMS for word in ("--platform", each)]
    _call(
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms, "--dest", str(wheels),
        *_wheels(),
    )  # fmt: skip
    for wheel in sorted(wheels.glob("*.whl")):
        shutil.unpack_archive(wheel, place / "wheels", "zip")
    shutil.rmtree(archives)
    _call("gcc", "-O2", "-shared", "-fPIC", str(PLUGIN), "-o", str(place / "host" / "count.so"))
    for processor in PROCESSORS:
        system = place / processor.name
        (system / "proc").mkdir(parents=True)
        for part in ("usr", "lib", "etc"):
            if (place / "base" / part).exists():
                (system / part).symlink_to(Path("..") / "base" / part)
        (system / "proc" / "cpuinfo").write_text(processor.cpuinfo)
    (place / "SHA256SUMS").write_text(_sums(place))


def _downloaded(folder: Path, architecture: str, packages: Sequence[str]) -> Iterator[Path]:
    """Debian packages, whose digests apt checks against Debian's signed lists."""
    for part in ("lists/partial", "cache/archives/partial", "debs"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(SOURCES)
    options = [
        f"-oAPT::Architecture={architecture}",
        f"-oAPT::Architectures={architecture}",
        f"-oDir::Etc::sourcelist={folder / 'sources.list'}",
        "-oDir::Etc::sourceparts=-",
        f"-oDir::State::lists={folder / 'lists'}",
        f"-oDir::State::status={folder / 'status'}",
        f"-oDir::Cache={folder / 'cache'}",
        "-oAPT::Sandbox::User=",
        "-qq",
    ]
    _call("apt-get", *options, "update")
    _call("apt-get", *options, "download", *packages, folder=folder / "debs")
    yield from sorted((folder / "debs").glob("*.deb"))


def _sums(place: Path) -> str:
    """SHA-256 of every file of the root, as ``sha256sum`` writes them."""
    files = sorted(
        path
        for path in place.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name != "SHA256SUMS" and "__pycache__" not in path.parts
    )
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(place)}\n" for path in files)


def _call(*command: str, folder: Path | None = None) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
