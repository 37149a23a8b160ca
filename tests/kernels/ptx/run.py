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
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
KERNELS = ("gated_mlp", "head", "inform_head", "latent_distance", "norm", "packed_attention", "rotary", "rows")

# (kernel, what is wrong, text, its replacement). The text must be there once.
MUTANTS = [
    ("gated_mlp", "gate and up exchanged", "gate_up + static_cast<size_t>(blockIdx.x) * 2 * inner;\n    const bf16* const up = gate + inner;", "gate_up + static_cast<size_t>(blockIdx.x) * 2 * inner + inner;\n    const bf16* const up = gate - inner;"),
    ("gated_mlp", "wrong stride of the rows", "static_cast<size_t>(blockIdx.x) * 2 * inner", "static_cast<size_t>(blockIdx.x) * inner"),
    ("gated_mlp", "last element left out", "for (int column = threadIdx.x; column < inner;", "for (int column = threadIdx.x; column < inner - 1;"),
    ("gated_mlp", "pieces of 8 where they do not fit", "inner % 8 == 0", "inner % 8 != 1"),
    ("gated_mlp", "wrong constant", "0.044715f", "0.0447f"),
    ("head", "no guard at the tail of the outputs", "if (output >= outputs) return;", ""),
    ("head", "sum of half the lanes", "int distance = 16; distance > 0", "int distance = 8; distance > 0"),
    ("head", "wrong stride of the weight", "weight + static_cast<size_t>(output) * columns", "weight + static_cast<size_t>(output) * (columns - 1)"),
    ("head", "a row of halves", "static_cast<size_t>(blockIdx.x) * 2 * inner", "static_cast<size_t>(blockIdx.x) * inner"),
    ("head", "logvar not halved", "expf(0.5f * mu", "expf(mu"),
    ("head", "start left out", "x_columns + start", "x_columns"),
    ("inform_head", "no barrier before a chunk is read", "        __syncthreads();\n#pragma unroll\n        for (int step = 0;", "#pragma unroll\n        for (int step = 0;"),
    ("inform_head", "no barrier before a chunk is overwritten", "chunk += CHUNK) {\n        __syncthreads();", "chunk += CHUNK) {"),
    ("inform_head", "halves of a fragment swapped", "(quad + 8 * half)", "(quad + 8 * (1 - half))"),
    ("inform_head", "wrong stride of a chunk", "* STRIDE + step + part", "* CHUNK + step + part"),
    ("inform_head", "no guard at the tail of the outputs", "output < outputs && inner < hidden", "inner < hidden"),
    ("inform_head", "no guard at the tail of the hidden state", "output < outputs && inner < hidden", "output < outputs"),
    ("inform_head", "no guard at the tail of the rows", "row < problem.rows && column < outputs", "column < outputs"),
    ("inform_head", "low part left out", "mma_bf16(sums[tile], low[0], weight.x, weight.y);", ""),
    ("inform_head", "rest of the weight left out", "mma_bf16(sums[tile], high[1], rest.z, rest.w);", ""),
    ("inform_head", "counter left as it is", "if (is_last) arrived[blockIdx.x] = 0;", ""),
    ("inform_head", "the last block counted one too late", "== gridDim.y - 1", "== gridDim.y"),
    ("inform_head", "size without the last channels", "column < hidden; column += 128) {", "column < hidden - 4; column += 128) {"),
    ("inform_head", "noise of the neighbour", "static_cast<int>(element - first);", "static_cast<int>(element - first) ^ (latent_dim % 2 == 0);"),
    ("inform_head", "noise shared by all rows", "shared ? draw :", "true ? draw :"),
    ("inform_head", "logvar not halved", "expf(0.5f * __ldcg", "expf(__ldcg"),
    ("inform_head", "one warp's units left out", "other < WARPS; ++other", "other < WARPS - 1; ++other"),
    ("inform_head", "no barrier before the warps are added", "partial[warp][lane] = reward;\n    __syncthreads();", "partial[warp][lane] = reward;"),
    ("inform_head", "no barrier before latents are read", "latents[row * d + j] = 0.0f;\n        }\n    }\n    __syncthreads();", "latents[row * d + j] = 0.0f;\n        }\n    }"),
    ("inform_head", "gradient without the scale", "= sums[i] * scale;", "= sums[i];"),
    ("inform_head", "gradient without the last row", "for (int row = 0; row < rows; ++row) {\n        const float input", "for (int row = 0; row < rows - 1; ++row) {\n        const float input"),
    ("inform_head", "gradient of logvar twice", "d_mu[d + j] = 0.5f * step;", "d_mu[d + j] = step;"),
    ("inform_head", "gradient of a size left out", "- whitened[at] * along", ""),
    ("norm", "no guard at the tail of the rows", "if (index >= rows) return;", ""),
    ("norm", "sum of half the lanes", "int distance = 16; distance > 0", "int distance = 8; distance > 0"),
    ("norm", "last element left out", "sum = fmaf(values[i] - mean, values[i] - mean, sum);", "sum = column + i < columns - 1 ? fmaf(values[i] - mean, values[i] - mean, sum) : sum;"),
    ("norm", "residual not kept", "store(x + column, values);", ""),
    ("norm", "pieces of 4 where they do not fit", "columns % 4 == 0", "columns % 4 != 1"),
    ("norm", "epsilon left out", "sum / columns + epsilon", "sum / columns + 0.0f * epsilon"),
    ("rows", "last element left out", "for (int column = threadIdx.x; column < columns;", "for (int column = threadIdx.x; column < columns - 1;"),
    ("rows", "pieces of 4 where they do not fit", "columns % 4 == 0", "columns % 4 != 1"),
    ("rows", "rows of a table in order", "static_cast<size_t>(ids[blockIdx.x])", "static_cast<size_t>(ids[0] + 0 * blockIdx.x)"),
    ("rotary", "wrong sign", "a.x * c.x - b.x * s.x", "a.x * c.x + b.x * s.x"),
    ("rotary", "position of the next row", "const sine = sines + static_cast<size_t>(positions[blockIdx.x])", "const sine = sines + static_cast<size_t>(positions[blockIdx.x ^ 1])"),
    ("rotary", "one head left out", "four < rotated_heads * half / 4", "four < (rotated_heads - 1) * half / 4"),
    ("rotary", "values beyond their end", "column < plain_heads * head_dim", "column < plain_heads * head_dim + 4"),
    ("packed_attention", "no barrier before a stage is read", "cp_async_wait<1>();\n        __syncthreads();", "cp_async_wait<1>();"),
    ("packed_attention", "no barrier before a stage is overwritten", "// The next turn overwrites this stage.\n        __syncthreads();", ""),
    ("packed_attention", "no wait for the copies", "cp_async_wait<1>()", "cp_async_wait<2>()"),
    ("packed_attention", "no guard at the tail of the keys", "const bool exists = position <= last_position;", "const bool exists = true;"),
    ("packed_attention", "key fragments swapped", "lane / 8 % 2 * 8", "(1 - lane / 8 % 2) * 8"),
    ("packed_attention", "value fragments swapped", "lane / 16 * 8);\n                    mma", "(1 - lane / 16) * 8);\n                    mma"),
    ("packed_attention", "wrong stride of the values", "values + row * STRIDE", "values + row * HEAD_DIM"),
    ("packed_attention", "window one too long", "behind < problem.window", "behind <= problem.window"),
    ("packed_attention", "a query that does not see itself", "behind >= 0 &&", "behind > 0 &&"),
    ("packed_attention", "walk begins at the last query's window", "first_position - problem.window + 1) : 0", "last_position - problem.window + 1) : 0"),
    ("packed_attention", "mask left out one block late", "first_key <= warp_last - problem.window", "first_key < warp_first - problem.window"),
    ("packed_attention", "maximum of half the columns", "highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));", ""),
    ("packed_attention", "weights of half the columns", "weight[half] += __shfl_xor_sync(0xffffffffu, weight[half], 2);", ""),
    ("packed_attention", "stretch left one position late", "stretch[1].y <= position", "stretch[1].y < position"),
    ("packed_attention", "wrong head of a group", "row % group) * HEAD_DIM", "quad % group) * HEAD_DIM"),
    ("packed_attention", "rows without a query read beyond the tile", "const int query = min(row / group, queries - 1);", "const int query = row / group;"),
    ("packed_attention", "last block of a warp skipped", "if (first_key <= warp_last) {", "if (first_key < warp_last) {"),
    ("packed_attention", "blocks aligned to the segment, not the position", "const int position = block * KEY_BLOCK + key;", "const int position = block * KEY_BLOCK + (key ^ (first_row & 8));"),
    ("latent_distance", "no barrier before a stage is read", "keep(shared.y[stage], next_y);\n        __syncthreads();", "keep(shared.y[stage], next_y);"),
    ("latent_distance", "one stage", "first += DEPTH_STEP, stage ^= 1", "first += DEPTH_STEP"),
    ("latent_distance", "no guard at the tail of the rows", "row < rows && channel < depth", "channel < depth"),
    ("latent_distance", "no guard at the tail of the channels", "row < rows && channel < depth", "row < rows"),
    ("latent_distance", "columns beyond the set are nearest", "if (column < m && sums[i][j] < INFINITY", "if (sums[i][j] < INFINITY"),
    ("latent_distance", "a NaN is not open", "!(distance <= inner) && !(distance > outer)", "distance > inner && distance <= outer"),
    ("latent_distance", "words counted twice", "horizontal % 8 == 0 && row < n", "horizontal % 4 == 0 && row < n"),
    ("latent_distance", "words of half their threads", "distance < 8; distance *= 2", "distance < 4; distance *= 2"),
    ("latent_distance", "wrong stride", "STRIDE = TILE + 4", "STRIDE = TILE + 2"),
    ("latent_distance", "columns counted from their tile", "static_cast<unsigned>(column);", "static_cast<unsigned>(place(threadIdx.x % 16, j));"),
    ("latent_distance", "last row left out", "row < n && column < m) out", "row < n - 1 && column < m) out"),
]


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
    caught = tried = 0
    for kernel, fault, text, replacement in MUTANTS:
        if kernel not in kernels:
            continue
        source = (ROOT / "kernels" / f"{kernel}.cu").read_text()
        if source.count(text) != 1:
            sys.exit(f"{kernel}, {fault}: its text is there {source.count(text)} times")
        mutant, ptx = out / "mutant.cu", out / "mutant.ptx"
        mutant.write_text(source.replace(text, replacement))
        compile_ptx(mutant, "80", ptx)
        done = subprocess.run([str(out / kernel), str(ptx), str(shapes), str(seed)], capture_output=True, text=True)
        tried += 1
        said = (done.stdout + done.stderr).strip().splitlines()
        # 1: another result; 3: the interpreter stopped it. Anything else is no finding, nor is PTX that it does not know.
        found = done.returncode in (1, 3) and "ptx: unknown" not in "".join(said[-1:])
        caught += found
        print(f"{'caught' if found else 'MISSED'}  {kernel}: {fault}: {said[-1] if said else done.returncode}", flush=True)
    print(f"{caught} of {tried} mutants caught")
    return caught == tried


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
