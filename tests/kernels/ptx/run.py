#!/usr/bin/env python3
"""Interprets the PTX that nvcc emits for the kernels, and compares with f64 references.

    tests/kernels/ptx/run.py [--shapes N] [--seed S] [--sm 80,90,100] [--sanitize] [--mutants] [KERNEL ...]

Needs nvcc (PATH, or $CUDA_HOME/bin) and g++. Compiles kernels/<KERNEL>.cu for each architecture and runs its test,
tests/kernels/ptx/<KERNEL>.cpp. --sanitize builds the interpreter with AddressSanitizer and UBSan. --mutants also
compiles each kernel with one seeded fault at a time and expects its test to fail. Exits 1 where anything does
not go as it should.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "tests" / "kernels"))
from mutants import KERNELS, MUTANTS  # noqa: E402


def tool(name: str) -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = shutil.which(name) or (shutil.which(name, path=f"{home}/bin") if home else None)
    if path is None:
        sys.exit(f"{name} is not in PATH and not in $CUDA_HOME/bin: install the CUDA toolkit")
    return path


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def compile_ptx(source: Path, architecture: str, ptx: Path) -> None:
    run([tool("nvcc"), "-std=c++17", "-O3", "--ptx", f"-arch=compute_{architecture}", f"-I{ROOT / 'kernels'}", "-o", str(ptx), str(source)])


def build(kernels: list[str], out: Path, sanitize: bool) -> None:
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]
    if sanitize:
        flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    objects = []
    for name in ("module", "machine", "arithmetic"):
        objects.append(str(out / f"{name}.o"))
        run(["g++", *flags, "-c", "-o", objects[-1], str(HERE / f"{name}.cpp")])
    for kernel in kernels:
        run(["g++", *flags, "-o", str(out / kernel), str(HERE / f"{kernel}.cpp"), *objects])


def mutants(kernels: list[str], out: Path, shapes: int, seed: int) -> bool:
    tried = [mutant for mutant in MUTANTS if mutant[0] in kernels]
    for kernel, fault, text, _ in tried:
        count = (ROOT / "kernels" / f"{kernel}.cu").read_text().count(text)
        if count != 1:
            sys.exit(f"{kernel}, {fault}: its text is there {count} times")

    def is_caught(number: int) -> bool:
        kernel, fault, text, replacement = tried[number]
        mutant, ptx = out / f"mutant{number}.cu", out / f"mutant{number}.ptx"
        mutant.write_text((ROOT / "kernels" / f"{kernel}.cu").read_text().replace(text, replacement))
        compile_ptx(mutant, "80", ptx)
        done = subprocess.run([str(out / kernel), str(ptx), str(shapes), str(seed)], capture_output=True, text=True)
        mutant.unlink(), ptx.unlink()
        said = (done.stdout + done.stderr).strip().splitlines()
        # 1: another result; 3: the interpreter stopped it. Anything else is no finding, nor is PTX that it does not know.
        found = done.returncode in (1, 3) and "ptx: unknown" not in "".join(said[-1:])
        print(f"{'caught' if found else 'MISSED'}  {kernel}: {fault}: {said[-1] if said else done.returncode}", flush=True)
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        caught = sum(pool.map(is_caught, range(len(tried))))
    print(f"{caught} of {len(tried)} mutants caught")
    return caught == len(tried)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", default=[])
    parser.add_argument("--shapes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sm", default="80", help="architectures, separated by commas")
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "kernels" / "ptx")
    arguments = parser.parse_args()
    kernels = arguments.kernels or list(KERNELS)
    unknown = [kernel for kernel in kernels if kernel not in KERNELS]
    if unknown:
        parser.error(f"no test of {', '.join(unknown)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    build(kernels, arguments.out, arguments.sanitize)
    good = True
    for kernel in kernels:
        for architecture in arguments.sm.split(","):
            ptx = arguments.out / f"{kernel}.sm_{architecture}.ptx"
            compile_ptx(ROOT / "kernels" / f"{kernel}.cu", architecture, ptx)
            start = time.monotonic()
            done = subprocess.run([str(arguments.out / kernel), str(ptx), str(arguments.shapes), str(arguments.seed)])
            print(f"  sm_{architecture}, {time.monotonic() - start:.1f} s, exit {done.returncode}", flush=True)
            good &= done.returncode == 0
    if arguments.mutants:
        good &= mutants(kernels, arguments.out, arguments.shapes, arguments.seed)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
