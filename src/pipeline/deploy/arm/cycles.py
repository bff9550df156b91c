"""How long an inference takes on a board, foretold from what it executes under emulation: a range, and its assumptions.

Core: a straight piece of code takes the cycles that llvm-mca gives it where it is repeated, with every value in the
first cache and every branch foreseen. Memory: caches of the processor's sizes, asked by the program's own addresses.

- least: prefetchers bring every line while the core computes: the longest of the core's time and each level's
- most: nothing overlaps: lines that follow one another take their way from the next level, others the whole wait
"""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from pipeline.deploy.arm import LLVM, Executed, Processor, root

REPEATED = 50
"""How often a piece of code follows itself where its cycles are taken."""
LOOKED_AT = 0.99
"""Share of the executed instructions whose pieces are looked at, the most executed ones; the rest is like them."""
WORD = 8
"""Hexadecimal digits of an instruction."""


def milliseconds(executed: Sequence[Executed], processor: Processor) -> list[dict[str, tuple[float, float]]]:
    """Least and most milliseconds of each, by board."""
    cores = core_cycles([each.blocks for each in executed], processor.model)
    return [ranges(core, each, processor) for core, each in zip(cores, executed, strict=True)]


def ranges(core: float, executed: Executed, processor: Processor) -> dict[str, tuple[float, float]]:
    """Least and most milliseconds by board, of what takes ``core`` cycles of the core alone."""
    return {board: _range(core, executed.missed, processor, clock) for board, clock in processor.gigahertz.items()}


def _range(
    core: float, missed: Sequence[tuple[int, int]], processor: Processor, gigahertz: float
) -> tuple[float, float]:
    computing = core / gigahertz * 1e-6
    on_the_way, waiting = [], 0.0
    for (lines, streamed), cache in zip(missed, processor.caches, strict=True):
        line = (cache.line_cycles / gigahertz + cache.line_ns) * 1e-6
        wait = (cache.cycles / gigahertz + cache.ns) * 1e-6
        on_the_way.append(lines * line)
        waiting += streamed * line + (lines - streamed) * wait
    return max(computing, *on_the_way), computing + waiting


def core_cycles(runs: Sequence[Mapping[str, int]], model: str) -> list[float]:
    """Cycles of the core alone, of each run: how often it executes pieces of code, by their bytes in hexadecimal.

    ``model`` is what llvm-mca calls the core.
    """
    hot = [_hottest(run) for run in runs]
    cost = _costs(sorted({code for run in hot for code in run}), model)
    found = []
    for run, all_of_it in zip(hot, runs, strict=True):
        known = {code: times for code, times in run.items() if code in cost}
        cycles = sum(cost[code] * times for code, times in known.items())
        found.append(cycles * _instructions(all_of_it) / _instructions(known) if known else 0.0)
    return found


def _instructions(run: Mapping[str, int]) -> int:
    return sum(len(code) // WORD * times for code, times in run.items())


def _hottest(run: Mapping[str, int]) -> dict[str, int]:
    """The most executed pieces of a run that make up ``LOOKED_AT`` of it."""
    left, found = LOOKED_AT * _instructions(run), {}
    for code, times in sorted(run.items(), key=lambda item: (-len(item[0]) * item[1], item[0])):
        if left <= 0:
            break
        found[code] = times
        left -= len(code) // WORD * times
    return found


def _costs(pieces: Sequence[str], model: str) -> dict[str, float]:
    """Cycles of each piece of code, repeated; those are missing that LLVM does not know."""
    source = "".join(
        f"# LLVM-MCA-BEGIN {number}\n{lines}# LLVM-MCA-END {number}\n"
        for number, lines in enumerate(_assembly(pieces))
        if lines
    )
    options = ["-mtriple=aarch64", f"-mcpu={model}", f"-iterations={REPEATED}", "-call-latency=1", "-json", "-"]
    told = json.loads(_said("llvm-mca", [*options, "-skip-unsupported-instructions=any"], source))
    return {
        pieces[int(region["Name"])]: region["SummaryView"]["TotalCycles"] / REPEATED for region in told["CodeRegions"]
    }


def _assembly(pieces: Sequence[str]) -> Iterator[str]:
    """Each piece of code as an assembler reads it; branches and addresses lead nowhere, which no cycle depends on."""
    words = [code[at : at + WORD] for code in pieces for at in range(0, len(code), WORD)]
    kinds = list(dict.fromkeys(words))
    text = "".join(",".join(f"0x{word[at : at + 2]}" for at in (6, 4, 2, 0)) + "\n" for word in kinds)
    marked = _said("llvm-mc", ["-disassemble", "-triple=aarch64", "-mattr=+all", "-show-encoding"], text)
    known = dict(zip(kinds, [""] * len(kinds), strict=True))
    for line, encoding in re.findall(r"^\t(.*?)\s*// encoding: \[(.*?)\]$", marked, re.MULTILINE):
        word = "".join(reversed([each.removeprefix("0x") for each in encoding.split(",")]))
        known[word] = f"\t{line}\n"
    for code in pieces:
        yield "".join(known[code[at : at + WORD]] for at in range(0, len(code), WORD))


def _said(tool: str, options: Sequence[str], given: str) -> str:
    place = root()
    done = subprocess.run(
        [str(place / LLVM / tool), *options],
        input=given,
        env={"LD_LIBRARY_PATH": str(place / "host/usr/lib/x86_64-linux-gnu")},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
