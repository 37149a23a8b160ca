"""How far can a head be followed? Best of n by one InfoRM head, valued by another.

    cargo build --release --features mistralrs
    python3 benches/experiments/best_of_n.py --start BASE --data FOLDER --work DIR

BASE is the folder of a language model, the policy and the backbone of both heads, its weights stored as BF16. FOLDER holds
alpaca_eval_gpt4_10k.jsonl.gz, whose prompts are divided: PROXY of them with their pairs train the proxy, GOLD others the gold
model, to SFT further ones the policy answers once, which makes the baseline, and to ASKED further ones 16 times. Then the best of 1, 2, 4, 8 and
16, twice: the samples drawn and chosen in one command, and chosen again from the file. Prints the table in Markdown; DIR keeps samples,
checkpoints and plots, and a run that was stopped goes on. Needs AVX-512 BF16 unless --dtype f32 is given.
"""

import argparse
import gzip
import json
import subprocess
from pathlib import Path

PROXY, GOLD, SFT, ASKED = 30, 40, 64, 24
NEW_TOKENS = 64
N = [1, 2, 4, 8, 16]
TEMPLATE = """
output = "{output}"
mode = "head"
weight_type = "bf16"
[start]
folder = "{start}"
[features]
folder = "{features}"
dtype = "{dtype}"
[head]
kind = "inform"
latent_dim = 128
[data]
files = ["{pairs}"]
bad_lines = "drop"
[loss]
beta = 0.01
[optimiser]
learning_rate = 1e-3
[schedule]
epochs = 5
pairs_per_step = 64
[card]
title = "{name}"
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trainer", default="target/release/trainer")
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--dtype", default="bf16")
    arguments = parser.parse_args()
    work, trainer = arguments.work, arguments.trainer
    work.mkdir(parents=True, exist_ok=True)
    parts = divide(arguments.data / "alpaca_eval_gpt4_10k.jsonl.gz", work)

    for name in ("proxy", "gold"):
        if not (work / name).exists():
            file = work / f"{name}.toml"
            file.write_text(
                TEMPLATE.format(
                    output=work / name, start=arguments.start, features=work / "features", dtype=arguments.dtype,
                    pairs=parts[name], name=name,
                )
            )  # fmt: skip
            run(trainer, "fit", "--config", file)
    policy = ["--sample-from", arguments.start, "--max-new-tokens", NEW_TOKENS]
    answers = work / "answers.jsonl"
    drawn = [] if answers.exists() else [*policy, "--prompts", parts["sft"]]
    run(trainer, "baseline", "--model", work / "proxy", "--data", answers, *drawn, "--dtype", arguments.dtype)

    samples = work / "samples.jsonl"
    command = [trainer, "best-of-n", "--samples", samples, "--proxy", work / "proxy", "--gold", work / "gold"]
    command += ["--n", *N, "--dtype", arguments.dtype]
    if not samples.exists():
        outputs = ["--output", work / "drawn", "--plots", work / "drawn"]
        run(*command, *policy, "--prompts", parts["asked"], *outputs)
    table = run(*command, "--output", work / "again", "--plots", work / "again")
    first, second = ((work / name / "best-of-n.json").read_bytes() for name in ("drawn", "again"))
    assert first == second, "the file gave another table than the samples when they were drawn"
    print(table)


def divide(source, work):
    """Files of pairs and of prompts, no prompt in two of them."""
    rows = {}
    with gzip.open(source, "rt") as lines:
        for line in lines:
            rows.setdefault(json.dumps({"prompt": json.loads(line)["prompt"]}), []).append(line)
    prompts, begin, files = list(rows), 0, {}
    for name, count in (("proxy", PROXY), ("gold", GOLD), ("sft", SFT), ("asked", ASKED)):
        own = prompts[begin : begin + count]
        begin += count
        files[name] = work / f"{name}.jsonl"
        lines = [line for prompt in own for line in rows[prompt]]
        if name in ("sft", "asked"):
            lines = [prompt + "\n" for prompt in own]
        files[name].write_text("".join(lines))
    return files


def run(*command):
    command = [str(part) for part in command]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
