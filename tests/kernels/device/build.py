#!/usr/bin/env python3
"""Builds the emulated CUDA device: libcuda.so.1 and libcublas.so.13, for programs on a machine without a GPU.

    tests/kernels/device/build.py OUTDIR
    LD_LIBRARY_PATH=OUTDIR program

Prints OUTDIR, made absolute. Needs g++ only: the PTX comes from the program. What the device does, and its settings:
device.hpp. Does nothing where both are newer than the sources.
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUTDIR")
    out = parser.parse_args().out.resolve()
    build(out)
    print(out)


if __name__ == "__main__":
    main()
