"""How fast a machine can train: the precision that it is fast at, whether compiling repays, and memory that is kept."""

import ctypes
import dataclasses
import os
import shutil
import sys

import torch

from pipeline.ground.environment import processor_features
from pipeline.ground.errors import SettingsError
from pipeline.settings.groups import Training

COMPILE_REPAYS = {"gpu": 5000, "amx": 500}
"""Steps of one training from which on its faster steps repay the compilation, about a minute. With AMX a step is 1.3
times as fast compiled; on processors without it nothing is gained."""


def resolved(training: Training, steps_per_epoch: int, *, compilable: bool = True) -> Training:
    """The same settings with ``auto`` decided for this machine; a LightningModule compiles its own parts.

    Raises:
        SettingsError: if ``training.compile`` is on and there is no C++ compiler.
    """
    precision, compiled = training.precision, training.compile
    if precision == "auto":
        precision = "bfloat16" if fast_bfloat16() else "float32"
    if not compilable:
        if compiled == "on":
            raise SettingsError(
                ["training.compile: got on for a LightningModule, which compiles its own parts; takes auto"]
            )
        compiled = "off"
    elif compiled == "auto":
        steps = min(training.epochs * steps_per_epoch, training.max_steps or sys.maxsize)
        amx = precision == "bfloat16" and "amx_bf16" in processor_features()
        kind = "gpu" if torch.cuda.is_available() else "amx" if amx else None
        compiled = "on" if kind is not None and steps >= COMPILE_REPAYS[kind] and has_compiler() else "off"
    elif compiled == "on" and not has_compiler():
        raise SettingsError(["training.compile: got on, which takes a C++ compiler: apt-get install g++"])
    return dataclasses.replace(training, precision=precision, compile=compiled)


def fast_bfloat16() -> bool:
    """Whether the device multiplies bfloat16 in hardware: a GPU from Ampere on, AMX, AVX512-BF16, ARM's BF16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not processor_features().isdisjoint({"amx_bf16", "avx512_bf16", "bf16"})


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which ``torch.compile`` needs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, so that a step does not get its activations from the kernel anew, page by page."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
