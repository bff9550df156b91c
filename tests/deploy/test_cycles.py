"""Cycles and cache misses that are foretold, against closed forms: programs whose accesses and latencies are known."""

import dataclasses
import subprocess
import sys

import pytest

from pipeline.deploy import arm
from pipeline.deploy.arm import cycles
from tests.deploy.test_arm import root  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CALLED = """
static long call(long number, long a) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8) : "memory");
    return x0;
}
static volatile unsigned char array[1 << 22] __attribute__((aligned(4096)));
void _start(void) {
    for (long pass = 0; pass < PASSES; pass++) {
        call(173, 0);
        WALK
    }
    call(173, 0);
    call(93, 0);
}
"""
ONE_AFTER_ANOTHER = "for (long at = 0; at < BYTES; at += 4) (void)array[at];"
SCATTERED = (
    "for (unsigned long n = 0, at = 0; n < BYTES / 64; n++, at = (at * 5 + 12345) % (BYTES / 64)) (void)array[at * 64];"
)


def walked(folder, processor, walk, size, passes=4):
    """What each pass of a program over ``size`` bytes executes."""
    source, program = folder / "walk.c", folder / "walk"
    source.write_text(CALLED.replace("WALK", walk).replace("PASSES", str(passes)).replace("BYTES", str(size)))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "ziglang",
            "cc",
            "-target",
            "aarch64-linux-none",
            "-O1",
            "-nostdlib",
            "-static",
            source,
            "-o",
            program,
        ],
        check=True,
    )
    command, environment = arm.interpreter(processor, folder / "counts")
    subprocess.run([*command[:-1], str(program)], env=environment, check=True)
    return list(arm.calls((folder / "counts").read_text().splitlines()))[1:]


@pytest.mark.parametrize("processor", arm.PROCESSORS, ids=lambda each: each.name)
def test_a_walk_over_memory_misses_each_line_that_a_cache_cannot_hold(processor, root, tmp_path):  # noqa: F811
    for size in (16 << 10, 256 << 10, 4 << 20):
        last = walked(tmp_path, processor, ONE_AFTER_ANOTHER, size)[-1]
        lines = size // 64
        for (missed, streamed), cache in zip(last.missed, processor.caches, strict=True):
            assert missed == pytest.approx(0 if size <= cache.size else lines, abs=8)
            assert streamed == pytest.approx(missed, abs=8), "a prefetcher sees them come"
        assert last.instructions == pytest.approx(size, rel=0.3), "a load, a sum, a comparison, a branch"
        assert last.instructions == sum(len(code) // 8 * times for code, times in last.blocks.items())


def test_no_prefetcher_sees_a_scattered_walk_come(root, tmp_path):  # noqa: F811
    last = walked(tmp_path, arm.CORTEX_A72, SCATTERED, 4 << 20)[-1]
    for missed, streamed in last.missed:
        assert missed == pytest.approx(65536, rel=0.01)
        assert streamed < 0.02 * missed


ADD, FMLA, UNKNOWN = "91000400", "4e24cc20", "ffffffff"
"""``add x0, x0, #1``; ``fmla v0.4s, v1.4s, v4.4s``; no instruction."""


@pytest.mark.parametrize("processor", arm.PROCESSORS, ids=lambda each: each.name)
def test_a_chain_takes_its_latencies(processor, root):  # noqa: F811
    added, twice, summed = cycles.core_cycles(
        [{ADD * 8: 1000}, {ADD * 8: 1000, ADD * 3: 2000}, {FMLA: 1000}], processor.model
    )
    assert added == pytest.approx(8000, rel=0.02), "a cycle an addition"
    assert twice == pytest.approx(14_000, rel=0.02)
    assert summed > 3000, "a sum waits for the one before it"
    beside, nothing = cycles.core_cycles([{ADD * 8: 1000, UNKNOWN: 40}, {UNKNOWN: 10}], processor.model)
    assert beside == pytest.approx(8000, rel=0.03)
    assert nothing == 0


def test_the_range_is_that_of_its_assumptions(monkeypatch):
    caches = (arm.Cache(1024, 2, cycles=10, line_cycles=2), arm.Cache(4096, 4, ns=100, line_ns=20))
    processor = dataclasses.replace(arm.CORTEX_A72, gigahertz={"one": 1.0, "two": 2.0}, caches=caches)
    monkeypatch.setattr(cycles, "core_cycles", lambda runs, model: [3e6 for _ in runs])
    (found,) = cycles.milliseconds([arm.Executed(1, {}, ((300_000, 100_000), (200_000, 150_000)))], processor)
    memory = 150_000 * 20e-6 + 50_000 * 100e-6
    assert found["one"] == pytest.approx((4.0, 3.0 + (100_000 * 2 + 200_000 * 10) * 1e-6 + memory))
    assert found["two"] == pytest.approx((4.0, 1.5 + (100_000 * 2 + 200_000 * 10) * 0.5e-6 + memory))
