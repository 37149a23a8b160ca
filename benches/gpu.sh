#!/usr/bin/env bash
# On a machine with an NVIDIA GPU (compute capability 8.0 or later), a CUDA 13 toolkit and a Rust toolchain: builds, runs every
# test of the CUDA device on it, measures its operations, whole batches and the server, and writes one report.
#
#   benches/gpu.sh [REPORT.md]        (default target/gpu.md; DEVICE=0, SMOLLM2_FOLDER, PAIRS as in benches/README.md)
#
# torch, transformers and vllm are compared with where python3 has them.
set -euo pipefail
cd "$(dirname "$0")/.."
report=${1:-target/gpu.md}
device=${DEVICE:-0}
mkdir -p target

section() { printf '\n# %s\n\n' "$*" | tee -a "$report"; }
fenced() { { echo '```'; "$@" 2>&1; echo '```'; } | tee -a "$report"; }

: >"$report"
section "Machine"
fenced nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
fenced git log -1 --format='%h %s'

cargo build --release --locked --features cuda

section "Tests on the device"
export REQUIRE_CUDA=1 CUDA_TRIAL=${CUDA_TRIAL:-50}
fenced cargo test --release --locked --features cuda --test integration cuda::scoring -- --nocapture --test-threads 1
fenced cargo test --release --locked --features cuda --test integration invariance::on_a_gpu -- --nocapture
fenced cargo test --release --locked --features cuda --test integration cuda::training -- --nocapture --test-threads 1

section "Operations and whole batches"
cargo bench --locked --features cuda --bench gpu -- --device "$device" | tee -a "$report"

section "The server"
serve() { cargo bench --locked --features cuda --bench serve -- "$@" --set "device=cuda:$device"; }
fenced serve load --clients 256 --seconds 20
fenced serve monitor
if [ -n "${SMOLLM2_FOLDER:-}" ]; then
  folder=target/gpu-smollm2
  [ -d "$folder" ] || cargo run --release --locked --bin trainer -- init-head --model "$SMOLLM2_FOLDER" --output "$folder" --seed 0
  fenced serve offline --model "$folder" --texts 4096 ${PAIRS:+--data "$PAIRS"}
fi

# Pairs a second stand in the line of each epoch.
if [ -n "${SMOLLM2_FOLDER:-}" ] && [ -n "${PAIRS:-}" ]; then
  section "Training"
  for mode in 'mode = "full"' 'mode = "lora"' 'recompute = true'; do
    rm -rf target/gpu-trained
    printf 'output = "target/gpu-trained"\ndevice = "cuda:%s"\ndtype = "bf16"\n%s\n' "$device" "$mode" >target/gpu-fit.toml
    printf 'start.folder = "%s"\ndata = { files = ["%s"], train_pairs = 1000 }\n' "$SMOLLM2_FOLDER" "$PAIRS" >>target/gpu-fit.toml
    printf 'schedule = { epochs = 2, pairs_per_step = 32, micro_batch_tokens = 32768 }\n' >>target/gpu-fit.toml
    fenced cargo run --release --locked --features cuda --bin trainer -- fit --config target/gpu-fit.toml
  done
fi

section "Peers"
python3 benches/gpu/peers.py --device "cuda:$device" ${SMOLLM2_FOLDER:+--model "$SMOLLM2_FOLDER"} | tee -a "$report"
echo
echo "wrote $report"
