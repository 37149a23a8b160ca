"""Does the bottleneck help? InfoRM and standard reward models on held-out and on foreign pairs.

    python3 benches/experiments/bottleneck.py --mode head --start BASE --data FOLDER --work DIR
    python3 benches/experiments/bottleneck.py --mode last_layers --start BASE --data FOLDER --work DIR

BASE is a model folder whose weights are stored as BF16. FOLDER holds alpaca_eval_gpt4_10k.jsonl.gz, llmbar.jsonl.gz and
pandalm.jsonl.gz. `head` trains heads over a frozen backbone on nine in ten of the 10,000 pairs, five epochs, with betas 0.1,
0.01 and 0.001; `last_layers` the last two layers besides, on 3,000 of the pairs of a part of the prompts, one epoch, with
beta 0.01. Each with seeds 0, 1 and 2 (--seeds; a seed decides the split by prompt, too), once on the labels as they are and once with a
quarter of them exchanged. Prints tables in Markdown; DIR keeps the features, the checkpoints and every evaluation as JSON, and
a run that was stopped goes on. Needs AVX-512 BF16 unless --dtype f32 is given.
"""

import argparse
import gzip
import json
import statistics
import subprocess
from pathlib import Path

NOISE = (0.0, 0.25)
STANDARD = {"standard": ("standard", 0.0)}
HEADS = {
    "head": STANDARD | {f"InfoRM, beta {beta}": ("inform", beta) for beta in (0.1, 0.01, 0.001)},
    "last_layers": STANDARD | {"InfoRM, beta 0.01": ("inform", 0.01)},
}
# What differs between the modes.
SETTINGS = {
    "head": {"rate": 1e-3, "epochs": 5, "pairs_per_step": 64, "more": ""},
    "last_layers": {"rate": 1e-4, "epochs": 1, "pairs_per_step": 16, "more": "train_pairs = 3000"},
}
# Prompts that `last_layers` uses, each with some 19 pairs: enough for 3,000 pairs and some 800 held out.
PROMPTS = 200
TEMPLATE = """
output = "{output}"
seed = {seed}
mode = "{mode}"
last_layers = {last_layers}
weight_type = "bf16"
dtype = "{dtype}"
[start]
folder = "{start}"
[features]
folder = "{features}"
dtype = "{dtype}"
[head]
kind = "{kind}"
latent_dim = 128
[data]
files = ["{pairs}"]
label_noise = {noise}
bad_lines = "drop"
{more}
[loss]
beta = {beta}
[optimiser]
learning_rate = {rate}
[schedule]
epochs = {epochs}
pairs_per_step = {pairs_per_step}
[card]
title = "{name}"
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trainer", default="target/release/trainer")
    parser.add_argument("--mode", choices=list(HEADS), default="head")
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dtype", default="bf16")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    pairs = arguments.data / "alpaca_eval_gpt4_10k.jsonl.gz"
    if arguments.mode == "last_layers":
        pairs = some_prompts(pairs, arguments.work / "some.jsonl")
    sets = {
        "held-out prompts": [str(pairs), "--held-out"],
        "LLMBar": [str(arguments.data / "llmbar.jsonl.gz")],
        "PandaLM": [str(arguments.data / "pandalm.jsonl.gz")],
    }
    heads = HEADS[arguments.mode]
    for noise in NOISE:
        found = {}
        for seed in range(arguments.seeds):
            for name, (kind, beta) in heads.items():
                folder = arguments.work / f"{kind}-{beta}-noise-{noise}-seed-{seed}"
                train(arguments, folder, pairs, name, kind=kind, beta=beta, noise=noise, seed=seed)
                for part, data in sets.items():
                    found[name, seed, part] = evaluate(arguments, folder, part, data)
        print(f"\n{noise:.0%} of the training labels exchanged:\n" if noise else "\nLabels as they are:\n")
        table(found, list(heads), range(arguments.seeds), list(sets))


def some_prompts(source, target):
    """The pairs of the first prompts, in a file of their own."""
    prompts = []
    with gzip.open(source, "rt") as lines, target.open("w") as kept:
        for line in lines:
            prompt = json.loads(line)["prompt"]
            if prompt not in prompts and len(prompts) < PROMPTS:
                prompts.append(prompt)
            if prompt in prompts:
                kept.write(line)
    return target


def train(arguments, folder, pairs, name, **settings):
    if folder.exists():
        return
    file = arguments.work / "settings.toml"
    file.write_text(
        TEMPLATE.format(
            output=folder, start=arguments.start, features=arguments.work / "features", dtype=arguments.dtype,
            pairs=pairs, name=name, mode=arguments.mode, last_layers=2 if arguments.mode == "last_layers" else 0,
            **settings, **SETTINGS[arguments.mode],
        )
    )  # fmt: skip
    run(arguments.trainer, "fit", "--config", str(file))


def evaluate(arguments, folder, part, data):
    kept = arguments.work / f"{folder.name}-{part.replace(' ', '-')}.json"
    if not kept.exists():
        found = run(
            arguments.trainer, "eval", "--model", str(folder), "--data", *data, "--json", "--drop-bad-lines",
            "--features", str(arguments.work / "features"), "--dtype", arguments.dtype,
        )  # fmt: skip
        kept.write_text(found)
    return json.loads(kept.read_text())


def run(*command):
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def table(found, heads, seeds, sets):
    """Mean accuracy over the seeds, their range, and the half width of the 95 % interval of one seed's accuracy."""
    print("| pairs | number | " + " | ".join(heads) + " |")
    print("|---|---|" + "---|" * len(heads))

    def row(label, pick):
        cells, number = [], "?"
        for name in heads:
            own = [pick(name, seed) for seed in seeds]
            number = " / ".join(sorted({str(part["pairs"]) for part in own}, key=int))
            accuracies = [part["accuracy"] for part in own]
            half = statistics.mean((part["interval"][1] - part["interval"][0]) / 2 for part in own)
            cells.append(
                f"{statistics.mean(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f}) ± {half:.3f}"
            )
        print(f"| {label} | {number} | " + " | ".join(cells) + " |")

    for part in sets:
        row(part, lambda name, seed, part=part: found[name, seed, part])
        for length in ("shorter", "longer"):
            key = f"{length}_chosen"
            row(f"{part}: chosen {length}", lambda name, seed, part=part, key=key: found[name, seed, part][key])
        for subset in sorted(found[heads[0], 0, part]["subsets"]):
            row(
                f"{part}: {subset}",
                lambda name, seed, part=part, subset=subset: found[name, seed, part]["subsets"][subset],
            )
    errors = [statistics.mean(found[name, seed, sets[0]]["calibration_error"] for seed in seeds) for name in heads]
    print(f"| calibration error, {sets[0]} | | " + " | ".join(f"{error:.3f}" for error in errors) + " |")


if __name__ == "__main__":
    main()
