"""The sparse engine as libraries: C, an idea a file, built for every processor on any machine by ``ziglang``.

A library is a file that ``onnxruntime.SessionOptions.register_custom_ops_library`` takes. It is kept in the cache
folder, by the digest of source, compiler and options; the same of these give the same bytes.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from pipeline.ground.environment import cache_folder, processor_features
from pipeline.ground.errors import PipelineError
from pipeline.ground.files import whole

SOURCE = Path(__file__).with_name("engine.c")
SOURCES = (SOURCE, *sorted(SOURCE.parent.glob("*.h")))
OPTIONS = (
    "-std=gnu11", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden", "-fPIC", "-shared", "-s",
    "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Processors that one library is for: those that have all of ``features``, as ``/proc/cpuinfo`` names them.

    It computes in float32, or in float16 where that is its ``precision``.
    """

    name: str
    machine: str
    processor: str
    features: frozenset[str] = frozenset()
    precision: Literal["float32", "float16"] = "float32"

    @property
    def options(self) -> list[str]:
        """What the compiler is told of it. glibc 2.17 is that of the oldest systems onnxruntime runs on."""
        return ["-target", f"{self.machine}-linux-gnu.2.17", f"-mcpu={self.processor}"]


TOLERANCE = {"float32": 1e-4, "float16": 3e-2}
"""Largest difference of a library's scores from those of float32, relative to the largest of these."""
TARGETS = (
    Target("x86_64-avx512", "x86_64", "x86_64_v4", frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"})),
    Target("x86_64-avx2", "x86_64", "x86_64_v3", frozenset({"avx2", "fma", "bmi2"})),
    Target("aarch64-fp16", "aarch64", "generic+fullfp16", frozenset({"fphp", "asimdhp"}), "float16"),
    Target("aarch64", "aarch64", "generic"),
)
"""The best for a processor comes first."""


def target_of(name: str) -> Target:
    """The target of a name.

    Raises:
        PipelineError: if there is none.
    """
    found = next((target for target in TARGETS if target.name == name), None)
    if found is None:
        raise PipelineError(f"kernels: got {name!r}, takes {', '.join(target.name for target in TARGETS)}")
    return found


def target_here() -> Target | None:
    """The best target for this machine's processor that computes in float32, if there is one."""
    features = processor_features()
    exact = (each for each in TARGETS if each.precision == "float32" and each.machine == platform.machine())
    return next((each for each in exact if each.features <= features), None)


def library(target: Target) -> Path:
    """The file of a target's library, built if it is not there.

    Raises:
        PipelineError: if there is no compiler, or it fails.
    """
    try:
        compiler = importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError as error:
        raise PipelineError("the sparse engine cannot be built: pip install ziglang") from error
    recipe = json.dumps([*(each.read_text() for each in SOURCES), compiler, OPTIONS, target.options])
    place = cache_folder() / f"kernels-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}" / f"{target.name}.so"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not place.exists():
            with whole(place) as unfinished:
                build(target, unfinished)
    return place


def build(target: Target, file: Path, options: Sequence[str] = OPTIONS) -> None:
    """Compiles a target's library into ``file``.

    Raises:
        PipelineError: with the compiler's own words, if it fails.
    """
    with tempfile.TemporaryDirectory() as name:  # no path of this machine gets into the library
        for source in SOURCES:
            shutil.copy(source, name)
        compiler = [sys.executable, "-m", "ziglang", "cc"]
        command = [*compiler, *target.options, *options, SOURCE.name, "-o", "engine.so", "-lm"]
        environment = os.environ | {"ZIG_LOCAL_CACHE_DIR": name}
        done = subprocess.run(command, cwd=name, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PipelineError(f"the sparse engine cannot be built for {target.name}: {done.stderr.strip()}")
        shutil.copy(Path(name) / "engine.so", file)
