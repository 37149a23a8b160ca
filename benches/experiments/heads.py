"""Does the bottleneck help? InfoRM and standard heads over one frozen backbone, on held-out and on foreign pairs.

    python3 benches/experiments/heads.py --trainer target/release/trainer --start BASE --data FOLDER --work DIR

BASE is a model folder whose weights are stored as BF16. FOLDER holds alpaca_eval_gpt4_10k.jsonl.gz, llmbar.jsonl.gz and
pandalm.jsonl.gz. Trains every head with seeds 0, 1 and 2 (a seed decides the split by prompt, too), once on the labels as
they are and once with a quarter of them exchanged, and prints tables in Markdown. DIR keeps the features, the checkpoints
and every evaluation as JSON. Needs AVX-512 BF16 unless --dtype f32 is given.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

SEEDS = (0, 1, 2)
HEADS = {
    "standard": ("standard", 0.0),
    "InfoRM, beta 0.1": ("inform", 0.1),
    "InfoRM, beta 0.01": ("inform", 0.01),
    "InfoRM, beta 0.001": ("inform", 0.001),
}
NOISE = (0.0, 0.25)
SETTINGS = """
output = "{output}"
seed = {seed}
mode = "head"
weight_type = "bf16"
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
[loss]
beta = {beta}
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
    arguments.work.mkdir(parents=True, exist_ok=True)
    pairs = arguments.data / "alpaca_eval_gpt4_10k.jsonl.gz"
    sets = {
        "held-out prompts": [str(pairs), "--held-out"],
        "LLMBar": [str(arguments.data / "llmbar.jsonl.gz")],
        "PandaLM": [str(arguments.data / "pandalm.jsonl.gz")],
    }
    features = arguments.work / "features"
    for noise in NOISE:
        found = {}
        for name, (kind, beta) in HEADS.items():
            for seed in SEEDS:
                folder = arguments.work / f"{kind}-{beta}-noise-{noise}-seed-{seed}"
                if not folder.exists():
                    settings = arguments.work / "settings.toml"
                    settings.write_text(
                        SETTINGS.format(
                            output=folder, seed=seed, start=arguments.start, features=features, kind=kind,
                            dtype=arguments.dtype, pairs=pairs, noise=noise, beta=beta, name=name,
                        )
                    )
                    run(arguments.trainer, "fit", "--config", str(settings))
                for part, data in sets.items():
                    kept = arguments.work / f"{folder.name}-{part.replace(' ', '-')}.json"
                    if not kept.exists():
                        kept.write_text(
                            run(
                                arguments.trainer, "eval", "--model", str(folder), "--data", *data, "--json",
                                "--drop-bad-lines", "--features", str(features), "--dtype", arguments.dtype,
                            )
                        )
                    found[name, seed, part] = json.loads(kept.read_text())
        print(f"\n{noise:.0%} of the training labels exchanged:\n" if noise else "\nLabels as they are:\n")
        table(found, list(sets))


def run(*command):
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def table(found, sets):
    """Mean accuracy over the seeds, their range, and the half width of the 95 % interval of one seed's accuracy."""
    print("| pairs | number | " + " | ".join(HEADS) + " |")
    print("|---|---|" + "---|" * len(HEADS))

    def row(label, pick):
        cells, number = [], "?"
        for name in HEADS:
            own = [pick(found, name, seed) for seed in SEEDS]
            number = " / ".join(sorted({str(part["pairs"]) for part in own}, key=int))
            accuracies = [part["accuracy"] for part in own]
            half = statistics.mean((part["interval"][1] - part["interval"][0]) / 2 for part in own)
            cells.append(
                f"{statistics.mean(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f}) ± {half:.3f}"
            )
        print(f"| {label} | {number} | " + " | ".join(cells) + " |")

    for part in sets:
        row(part, lambda found, name, seed, part=part: found[name, seed, part])
        for length in ("shorter", "longer"):
            key = f"{length}_chosen"
            row(f"{part}: chosen {length}", lambda found, name, seed, part=part, key=key: found[name, seed, part][key])
        for subset in sorted(found[next(iter(HEADS)), SEEDS[0], part]["subsets"]):
            row(
                f"{part}: {subset}",
                lambda found, name, seed, part=part, subset=subset: found[name, seed, part]["subsets"][subset],
            )
    cells = [
        f"{statistics.mean(found[name, seed, sets[0]]['calibration_error'] for seed in SEEDS):.3f}" for name in HEADS
    ]
    print(f"| calibration error, {sets[0]} | | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
