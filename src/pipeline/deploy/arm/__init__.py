"""ARM without a board: an aarch64 root of Debian packages and PyPI wheels, run under qemu's user emulation.

``root`` builds it once into the cache folder (``python -m pipeline.deploy.arm``, ``make arm-root``); a digest of every
file in it is checked by each process that uses it. Nothing is installed on the machine: qemu itself is unpacked too.
"""

import functools
import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    "llvm-19", "libllvm19", "libbsd0", "libedit2", "libffi8", "libicu72", "liblzma5", "libmd0", "libtinfo6", "libxml2",
    "libz3-4", "libzstd1",
)  # fmt: skip
WHEELS = ("onnxruntime", "numpy", "pillow", "flatbuffers", "protobuf", "packaging", "typing_extensions")
PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")
IMPORTS = (
    "argparse, csv, hashlib, json, platform, statistics, wave, zipfile, numpy, onnxruntime, PIL.Image, PIL.ImageDraw"
)
"""What a board's programs import: compiled once, which under emulation takes longer than the import."""
LLVM = Path("host/usr/lib/llvm-19/bin")
LLVM_TOOLS = ("llvm-mc", "llvm-mca")
PLUGIN = Path(__file__).with_name("count.c")
COUNTED = Path(__file__).with_name("count.py")


@dataclass(frozen=True)
class Cache:
    """A level of a processor's caches, of lines of 64 bytes. A line that it misses costs ``cycles`` of waiting, or
    ``ns``, where a prefetcher has not brought it, and ``line_cycles`` or ``line_ns`` of the way to the next level.
    """

    size: int
    ways: int
    cycles: float = 0
    line_cycles: float = 0
    ns: float = 0
    line_ns: float = 0


@dataclass(frozen=True)
class Processor:
    """A processor that qemu knows, and what Linux says of it in ``/proc/cpuinfo``.

    ``model`` is the one of LLVM's that is the nearest, ``gigahertz`` the clock of each board that has it, ``caches``
    are those of data, the first level first.
    """

    name: str
    part: str
    variant: str
    revision: int
    features: str
    model: str
    gigahertz: Mapping[str, float]
    caches: tuple[Cache, ...]

    @property
    def cpuinfo(self) -> str:
        """Four cores of it."""
        return "".join(
            f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: {self.variant}\nCPU part\t: {self.part}\n"
            f"CPU revision\t: {self.revision}\n\n"
            for core in range(4)
        )


CORTEX_A53 = Processor(
    "cortex-a53",
    "0xd03",
    "0x0",
    4,
    "fp asimd evtstrm crc32 cpuid",
    "cortex-a53",
    {"Raspberry Pi Zero 2 W": 1.0, "Raspberry Pi 3": 1.2},
    (Cache(32 << 10, 4, cycles=13, line_cycles=8), Cache(512 << 10, 16, ns=150, line_ns=30)),
)
CORTEX_A72 = Processor(
    "cortex-a72",
    "0xd08",
    "0x0",
    3,
    "fp asimd evtstrm crc32 cpuid",
    "cortex-a72",
    {"Raspberry Pi 4": 1.5},
    (Cache(32 << 10, 2, cycles=20, line_cycles=6), Cache(1 << 20, 16, ns=150, line_ns=16)),
)
CORTEX_A76 = Processor(
    "cortex-a76",
    "0xd0b",
    "0x4",
    1,
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    "neoverse-n1",
    {"Raspberry Pi 5": 2.4},
    (
        Cache(64 << 10, 4, cycles=9, line_cycles=3),
        Cache(512 << 10, 8, cycles=30, line_cycles=6),
        Cache(2 << 20, 16, ns=120, line_ns=7),
    ),
)
PROCESSORS = (CORTEX_A53, CORTEX_A72, CORTEX_A76)
"""Sizes and ways of caches are Arm's and Broadcom's; what a miss costs is assumed, by what boards were seen to take."""


def home() -> Path:
    """Where the root is kept: one folder a recipe."""
    recipe = json.dumps([PYTHON, SOURCES, PACKAGES, HOST_PACKAGES, _wheels(), PLATFORMS, IMPORTS, PLUGIN.read_text()])
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
    if not _whole(place):
        raise PipelineError(f"a file of the ARM root has changed: delete {place}, and it is built again")
    return place


@functools.cache
def _whole(place: Path) -> bool:
    return (place / "SHA256SUMS").read_text() == _sums(place)


def interpreter(processor: Processor, plugin: Path | None = None) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of Python on an emulated processor.

    ``plugin`` names a file that what is executed goes to, as of ``count.c``.
    """
    return _interpreter(root(), processor, plugin)


def _interpreter(place: Path, processor: Processor, plugin: Path | None) -> tuple[list[str], dict[str, str]]:
    system = place / processor.name
    caches = ":".join(f"{each.size}:{each.ways}" for each in processor.caches)
    counting = [] if plugin is None else ["-plugin", f"{place / 'host' / 'count.so'},counts={plugin},caches={caches}"]
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


@dataclass(frozen=True)
class Executed:
    """What was executed between two calls: how many instructions; how often each straight piece of code, by its bytes
    in hexadecimal; of each cache how many lines it missed, and how many of them it had missed the line before.
    """

    instructions: int
    blocks: Mapping[str, int]
    missed: tuple[tuple[int, int], ...]


def executed(processor: Processor, ways: Sequence[Way], inputs: Path, folder: Path, counted: int = 7) -> list[Executed]:
    """What one inference executes, by each way; its input the first of ``inputs``; one thread.

    Each is the median of ``counted`` by instructions, after one more than that, in one process whose addresses, random
    bytes and arguments are the same each time. Counts repeat to a few hundred: after some seconds, which a busy machine
    may make of a moment, an onnxruntime session does a little more in one inference or two.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place, written = Path(name), folder / f"{processor.name}.counts"
        (place / "inputs.npz").symlink_to(inputs.resolve())
        for number, (model, library) in enumerate(ways):
            (place / f"{number:02}.onnx").symlink_to(model.resolve())
            if library is not None:
                (place / f"{number:02}.so").symlink_to(library.resolve())
        emulated(processor, [str(COUNTED), "inputs.npz", str(counted)], place, plugin=written)
    return inferences(written, counted)


def inferences(written: Path, counted: int) -> list[Executed]:
    """The median of each ``counted`` inferences by instructions, as ``count.c`` has written them: before the first of
    them stands what led to it.
    """
    with written.open() as lines:
        found = list(calls(lines))
    each = counted + 1
    runs = [found[at + 1 : at + each] for at in range(0, len(found), each)]
    return [sorted(run, key=lambda one: one.instructions)[counted // 2] for run in runs]


def calls(lines: Iterable[str]) -> Iterator[Executed]:
    """What was executed before each call, as ``count.c`` writes it."""
    code: dict[str, str] = {}
    blocks: Counter[str] = Counter()
    missed: list[tuple[int, int]] = []
    for kind, *words in map(str.split, lines):
        if kind == "block":
            code[words[0]] = words[1]
        elif kind == "ran":
            blocks[code[words[0]]] += int(words[1])
        elif kind == "missed":
            missed.append((int(words[1]), int(words[2])))
        else:
            yield Executed(int(words[0]), blocks, tuple(missed))
            blocks, missed = Counter(), []


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
    for path in (place / LLVM).iterdir():
        if path.name not in LLVM_TOOLS:
            path.unlink()
    _call("gcc", "-O2", "-shared", "-fPIC", str(PLUGIN), "-o", str(place / "host" / "count.so"))
    for processor in PROCESSORS:
        system = place / processor.name
        (system / "proc").mkdir(parents=True)
        for part in ("usr", "lib", "etc"):
            if (place / "base" / part).exists():
                (system / part).symlink_to(Path("..") / "base" / part)
        (system / "proc" / "cpuinfo").write_text(processor.cpuinfo)
    command, environment = _interpreter(place, CORTEX_A72, None)
    del environment["PYTHONDONTWRITEBYTECODE"]
    _call(*command, "-c", f"import {IMPORTS}", environment=environment)
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
        path for path in place.rglob("*") if path.is_file() and not path.is_symlink() and path.name != "SHA256SUMS"
    )
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(place)}\n" for path in files)


def _call(*command: str, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
