#!/usr/bin/env python3
"""Runs the kernels' sources on the CPU (kernels/host), and compares with f64 references.

    tests/kernels/host/run.py [--shapes N] [--seed S] [--sanitize address|thread] [--mutants [--faults TEXT]] [KERNEL ...]

Needs g++ 10 or later and no CUDA. The tests are those of tests/kernels/ptx. address: AddressSanitizer and UBSan; thread:
ThreadSanitizer, to which each CUDA thread is one. --mutants compiles each kernel with one seeded fault at a time and
expects its test, or the sanitizer, to fail. Exits 1 where anything does not go as it should.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "tests" / "kernels"))
from mutants import KERNELS, MUTANTS  # noqa: E402

FLAGS = ["-std=c++17", "-O2", "-g1", "-ffp-contract=off", "-DKERNELS_ON_HOST", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-variable",
         "-Wno-unused-function", "-Wno-missing-field-initializers"]
SANITIZERS = {None: [], "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], "thread": ["-fsanitize=thread"]}
COMPILED: set[Path] = set()
ENVIRONMENT = {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66 report_signal_unsafe=0", "ASAN_OPTIONS": "detect_stack_use_after_return=0 exitcode=66"}


def compile_test(kernel: str, source: Path, out: Path, sanitize: str | None) -> str | None:
    """Builds `out` of a kernel's source and its test; what the compiler said where it could not."""
    known = json.loads((ROOT / "kernels" / "resources.json").read_text())
    names = [name for name, entry in known.items() if entry["file"] == f"{kernel}.cu"]
    listing = out.with_suffix(".registry.cpp")
    entries = ", ".join(f'{{"{name}", callable({name})}}' for name in names)
    listing.write_text(f'#include "{source}"\n#include "{HERE / "machine.hpp"}"\n'
                       f"const ptx::Kernels& ptx::kernels() {{ static const Kernels all{{{entries}}}; return all; }}\n")
    # Whatever is the same for all faults of a kernel is compiled once.
    common = ["g++", *FLAGS, f"-I{ROOT / 'kernels' / 'host'}", f"-I{ROOT / 'kernels'}"]
    objects = []
    for name, unit, flags in (
        ("engine", ROOT / "kernels" / "host" / "engine.cpp", ["-DHOST_WITH_TSAN"] if sanitize == "thread" else []),
        (f"{kernel}.test", HERE.parent / "ptx" / f"{kernel}.cpp", SANITIZERS[sanitize]),
    ):
        target = out.parent / f"{name}.o"
        objects.append(str(target))
        if target not in COMPILED:
            done = subprocess.run([*common, *flags, "-c", "-o", str(target), str(unit)], capture_output=True, text=True)
            if done.returncode != 0:
                return done.stdout + done.stderr
            COMPILED.add(target)
    command = [*common, *SANITIZERS[sanitize], "-o", str(out), str(listing), *objects]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode == 0 else done.stdout + done.stderr


def run(program: Path, shapes: int, seed: int) -> subprocess.CompletedProcess:
    return subprocess.run([str(program), "-", str(shapes), str(seed)], capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, timeout=1800)


def mutants(kernels: list[str], out: Path, shapes: int, seed: int, sanitize: str | None, faults: str) -> tuple[int, int]:
    caught = tried = 0
    for kernel, fault, text, replacement in MUTANTS:
        if kernel not in kernels or faults not in fault:
            continue
        source = (ROOT / "kernels" / f"{kernel}.cu").read_text()
        if source.count(text) != 1:
            sys.exit(f"{kernel}, {fault}: its text is there {source.count(text)} times")
        mutant = out / "mutant.cu"
        mutant.write_text(source.replace(text, replacement))
        wrong = compile_test(kernel, mutant, out / "mutant", sanitize)
        if wrong:
            sys.exit(f"{kernel}, {fault}: {wrong}")
        done = run(out / "mutant", shapes, seed)
        said = [line for line in (done.stdout + done.stderr).splitlines() if "FAILED" in line or "SUMMARY" in line or "runtime error" in line or line.startswith("host:")]
        tried += 1
        caught += done.returncode != 0
        print(f"{'caught' if done.returncode else 'MISSED'}  {kernel}: {fault}: {said[0] if said else done.returncode}", flush=True)
    return caught, tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", default=[])
    parser.add_argument("--shapes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sanitize", choices=["address", "thread"])
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--faults", default="", metavar="TEXT", help="only those whose description has it")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "kernels" / "host")
    arguments = parser.parse_args()
    kernels = arguments.kernels or list(KERNELS)
    unknown = [kernel for kernel in kernels if kernel not in KERNELS]
    if unknown:
        parser.error(f"no test of {', '.join(unknown)}")
    out = arguments.out / (arguments.sanitize or "plain")
    out.mkdir(parents=True, exist_ok=True)
    good = True
    for kernel in kernels:
        wrong = compile_test(kernel, ROOT / "kernels" / f"{kernel}.cu", out / kernel, arguments.sanitize)
        if wrong:
            sys.exit(wrong)
        start = time.monotonic()
        done = run(out / kernel, arguments.shapes, arguments.seed)
        print(done.stdout.strip() if done.returncode == 0 else (done.stdout + done.stderr).strip())
        print(f"  {arguments.sanitize or 'no sanitizer'}, {time.monotonic() - start:.1f} s, exit {done.returncode}", flush=True)
        good &= done.returncode == 0
    if arguments.mutants:
        caught, tried = mutants(kernels, out, arguments.shapes, arguments.seed, arguments.sanitize, arguments.faults)
        print(f"{caught} of {tried} mutants caught")
        good &= caught == tried
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
