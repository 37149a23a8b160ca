#!/usr/bin/env python3
"""Compiles every kernels/*.cu for each architecture, prints what the kernels take, and gates it.

    kernels/compile.py [--out DIR] [--record] [FILE.cu ...]

Needs nvcc and ptxas (PATH, or $CUDA_HOME/bin). Each file becomes DIR/<file>.sm_<arch>.ptx and .cubin. The table
shows registers a thread, shared memory a block, local memory (spills and stack) and theoretical occupancy: resident
warps of an SM over the most that it holds. Exits 1 if

- a kernel uses local memory: a spill or a stack frame,
- a kernel takes more registers or shared memory than kernels/resources.json says,
- a kernel of resources.json is missing, or one that it does not name is there,
- a kernel marked "mma" there has no mma.sync in its PTX,
- a kernel has no __launch_bounds__: its occupancy, and what it may be launched with, would be unknown.

--record writes what was found to resources.json. "dynamic_shared" (bytes) and "mma" are set by hand there, and kept.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESOURCES = HERE / "resources.json"


@dataclass(frozen=True)
class Limits:
    """Of one SM: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

    shared: int
    block_shared: int
    warps: int = 64
    blocks: int = 32
    registers: int = 65536
    # Allocation units of the CUDA occupancy calculator.
    register_unit: int = 256
    warp_unit: int = 4
    shared_unit: int = 128
    reserved_shared: int = 1024


KIB = 1024
ARCHITECTURES = {
    "80": Limits(shared=164 * KIB, block_shared=163 * KIB),
    "90": Limits(shared=228 * KIB, block_shared=227 * KIB),
    "100": Limits(shared=228 * KIB, block_shared=227 * KIB),
}


@dataclass
class Kernel:
    file: str
    threads: int
    mma: int
    registers: int
    static_shared: int
    stack: int
    spills: int


def up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def blocks_per_sm(kernel: Kernel, dynamic_shared: int, limits: Limits) -> int:
    """Blocks of a kernel that fit an SM at once, by the rules of the CUDA occupancy calculator."""
    warps = up(kernel.threads, 32) // 32
    shared = kernel.static_shared + dynamic_shared
    if shared > limits.block_shared:
        return 0
    a_warp = up(kernel.registers * 32, limits.register_unit)
    by_registers = limits.registers // a_warp // limits.warp_unit * limits.warp_unit // warps
    by_shared = limits.shared // up(shared + limits.reserved_shared, limits.shared_unit)
    return min(limits.blocks, limits.warps // warps, by_registers, by_shared)


def tool(name: str) -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = shutil.which(name) or (shutil.which(name, path=f"{home}/bin") if home else None)
    if path is None:
        sys.exit(f"{name} is not in PATH and not in $CUDA_HOME/bin: install the CUDA toolkit")
    return path


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def entries(ptx: str) -> dict[str, str]:
    """Each kernel's directives and body."""
    found = {}
    for match in re.finditer(r"\.entry\s+(\w+)\s*\(.*?\)(.*?)^}", ptx, re.S | re.M):
        found[match.group(1)] = match.group(2)
    return found


def compile_file(source: Path, architecture: str, out: Path) -> dict[str, Kernel]:
    stem = out / f"{source.stem}.sm_{architecture}"
    ptx_path, cubin = Path(f"{stem}.ptx"), Path(f"{stem}.cubin")
    run([tool("nvcc"), "-std=c++17", "-O3", "--ptx", f"-arch=compute_{architecture}", "-o", str(ptx_path), str(source)])
    report = run([tool("ptxas"), "-v", f"-arch=sm_{architecture}", "-o", str(cubin), str(ptx_path)])
    kernels = {}
    for name, body in entries(ptx_path.read_text()).items():
        section = re.search(rf"Function properties for {name}\b(.*?)(?=Function properties|Compiling entry|\Z)", report, re.S)
        if section is None:
            sys.exit(f"ptxas says nothing of {name}:\n{report}")

        def number(pattern: str, text: str = section.group(1)) -> int:
            match = re.search(pattern, text)
            return int(match.group(1)) if match else 0

        threads = 1
        bounds = re.search(r"\.maxntid\s+([\d, ]+)", body)
        for side in bounds.group(1).split(",") if bounds else ["0"]:
            threads *= int(side)
        kernels[name] = Kernel(
            file=source.name,
            threads=threads,
            mma=body.count("mma.sync"),
            registers=number(r"Used (\d+) registers"),
            static_shared=number(r"(\d+) bytes smem"),
            stack=number(r"(\d+) bytes stack frame"),
            spills=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        )
    return kernels


def faults(name: str, architecture: str, kernel: Kernel, known: dict) -> list[str]:
    """What is wrong with a kernel on an architecture."""
    where = f"{name} on sm_{architecture}"
    found = []
    if kernel.threads == 0:
        found.append(f"{where}: has no __launch_bounds__")
    if kernel.spills or kernel.stack:
        found.append(f"{where}: {kernel.spills} bytes of spills, {kernel.stack} bytes of stack")
    if name not in known:
        return found + [f"{where}: not in {RESOURCES.name}; run with --record"]
    if known[name].get("mma") and kernel.mma == 0:
        found.append(f"{where}: no mma.sync in its PTX")
    before = known[name]["sm"].get(architecture)
    if before is None:
        return found + [f"{where}: not in {RESOURCES.name}; run with --record"]
    for field in ("registers", "static_shared"):
        now = getattr(kernel, field)
        if now > before[field]:
            found.append(f"{where}: {field} grew from {before[field]} to {now}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.cu")
    parser.add_argument("--out", type=Path, default=HERE.parent / "target" / "kernels")
    parser.add_argument("--record", action="store_true", help=f"write {RESOURCES.name}")
    arguments = parser.parse_args()
    sources = arguments.files or sorted(HERE.glob("*.cu"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    known = json.loads(RESOURCES.read_text()) if RESOURCES.exists() else {}

    print(run([tool("nvcc"), "--version"]).strip().splitlines()[-1])
    row = "{:<28} {:>6} {:>8} {:>9} {:>7} {:>7} {:>6} {:>5} {:>6} {:>9}"
    print(row.format("kernel", "arch", "threads", "registers", "shared", "dynamic", "local", "mma", "blocks", "occupancy"))
    wrong = []
    recorded: dict[str, dict] = {}
    for source in sources:
        for architecture, limits in ARCHITECTURES.items():
            for name, kernel in compile_file(source, architecture, arguments.out).items():
                by_hand = known.get(name, {})
                dynamic = by_hand.get("dynamic_shared", 0)
                blocks = blocks_per_sm(kernel, dynamic, limits) if kernel.threads else 0
                occupancy = blocks * up(kernel.threads, 32) // 32 / limits.warps
                local = kernel.spills + kernel.stack
                print(row.format(name, f"sm_{architecture}", kernel.threads, kernel.registers, kernel.static_shared,
                                 dynamic, local, kernel.mma, blocks, f"{occupancy:.1%}"))
                if kernel.threads and blocks == 0:
                    wrong.append(f"{name} on sm_{architecture}: does not fit an SM")
                entry = recorded.setdefault(name, {
                    "file": kernel.file,
                    "threads": kernel.threads,
                    "dynamic_shared": dynamic,
                    "mma": by_hand.get("mma", False),
                    "sm": {},
                })
                entry["sm"][architecture] = {"registers": kernel.registers, "static_shared": kernel.static_shared}
                wrong += faults(name, architecture, kernel, recorded if arguments.record else known)
    compiled = {source.name for source in sources}
    if arguments.record:
        kept = {name: entry for name, entry in known.items() if entry["file"] not in compiled}
        everything = dict(sorted({**kept, **recorded}.items()))
        RESOURCES.write_text(json.dumps(everything, indent=2) + "\n")
    else:
        missing = [name for name, entry in known.items() if name not in recorded]
        if arguments.files:
            missing = [name for name in missing if known[name]["file"] in compiled]
        wrong += [f"{name}: in {RESOURCES.name}, but not compiled" for name in missing]
    for fault in wrong:
        print(fault, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
