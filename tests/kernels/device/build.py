#!/usr/bin/env python3
"""Builds the emulated CUDA device: libcuda.so.1 and libcublas.so.13, for programs on a machine without a GPU.

    tests/kernels/device/build.py OUTDIR           # prints OUTDIR, made absolute
    LD_LIBRARY_PATH=OUTDIR program
    tests/kernels/device/build.py OUTDIR --check   # tests the device itself; needs nvcc (PATH, or $CUDA_HOME/bin) too

Needs g++ only: the PTX comes from the program. What the device does, and its settings:
device.hpp. Does nothing where both are newer than the sources.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
PTX = HERE.parent / "ptx"
LIBRARIES = {
    "libcuda.so.1": [HERE / "driver.cpp", HERE / "memory.cpp", HERE / "streams.cpp", PTX / "module.cpp", PTX / "machine.cpp", PTX / "arithmetic.cpp"],
    "libcublas.so.13": [HERE / "cublas.cpp"],
}
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def build(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for folder in (HERE, PTX) for path in folder.iterdir() if path.is_file())
    if all((out / name).exists() and (out / name).stat().st_mtime > newest for name in LIBRARIES):
        return

    def compiled(source: Path) -> str:
        made = out / f"{source.stem}.o"
        run(["g++", *FLAGS, "-c", "-o", str(made), str(source)])
        return str(made)

    for name, sources in LIBRARIES.items():
        with ThreadPoolExecutor() as pool:
            objects = list(pool.map(compiled, sources))
        # The products are queued by the driver that lies beside them.
        others = [] if name.startswith("libcuda") else [f"-L{out}", "-l:libcuda.so.1", "-Wl,-rpath,$ORIGIN"]
        run(["g++", "-shared", f"-Wl,-soname,{name}", "-Wl,-z,defs", "-o", str(out / name), *objects, *others])
        for path in objects:
            Path(path).unlink()
        link = out / name[: name.index(".so") + 3]
        link.unlink(missing_ok=True)
        link.symlink_to(name)


def check(out: Path) -> None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)
    if nvcc is None:
        sys.exit("nvcc is not in PATH and not in $CUDA_HOME/bin: install the CUDA toolkit")
    kernel, ptx = HERE.parents[2] / "kernels" / "latent_distance.cu", out / "latent_distance.ptx"
    run([nvcc, "-std=c++17", "-O3", "--ptx", "-arch=compute_80", "-o", str(ptx), str(kernel)])
    run(["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-o", str(out / "check"), str(HERE / "check.cpp"), "-ldl"])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EMULATED_")}
    done = subprocess.run([str(out / "check"), str(out), str(ptx)], env={**kept, "EMULATED_DEVICES": "2"})
    sys.exit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUTDIR")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    build(out)
    print(out, flush=True)
    if arguments.check:
        check(out)


if __name__ == "__main__":
    main()
