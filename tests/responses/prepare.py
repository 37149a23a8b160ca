"""Writes what the measurement (run.py) on real answers needs, from the shared data: pairs to train a reward model
on, its settings, and the SFT and RLHF answers as steps of runs.

    python tests/responses/prepare.py SMOLLM2_FOLDER OUTPUT
    trainer fit --config OUTPUT/fit.toml
"""

import gzip
import json
import random
import sys
from pathlib import Path

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PAIRS = 256
TRAINED = 192
WINDOWS = 3  # as many in a row as raise an alert at the moderate level
LONGEST = 1000  # characters of both texts of a pair

FIT = """output = "{output}/model"

[start]
folder = "{start}"

[head]
latent_dim = 32

[data]
files = ["{output}/pairs.jsonl"]
train_pairs = {trained}
max_tokens = 512

[loss]
beta = 0.01

[optimiser]
learning_rate = 1e-4

[schedule]
epochs = 1
pairs_per_step = 8

[baseline]
samples = 0
"""


def question(row):
    """As the preference files join the two."""
    return "\n\n".join(part for part in (row["instruction"], row["input"]) if part)


def length(messages):
    return sum(len(message["content"]) for message in messages)


def main():
    start, output = (Path(argument).resolve() for argument in sys.argv[1:])
    output.mkdir(parents=True, exist_ok=True)
    sft, rlhf = (
        [(question(row), row["output"]) for row in json.loads((SHARED / "responses" / name).read_text())]
        for name in ("outputs_sft.json", "outputs_rlhf.json")
    )
    assert [prompt for prompt, _ in sft] == [prompt for prompt, _ in rlhf], "the answers are not aligned"

    # No question that the reward model saw is asked again.
    asked = {prompt for prompt, _ in sft}
    with gzip.open(SHARED / "preferences" / "alpaca_eval_gpt4_10k.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [
        row
        for row in rows
        if row["prompt"][0]["content"] not in asked
        and 2 * length(row["prompt"]) + length(row["chosen"]) + length(row["rejected"]) <= LONGEST
    ]
    random.Random(0).shuffle(rows)
    with open(output / "pairs.jsonl", "w") as file:
        for row in rows[:PAIRS]:
            pair = {key: row[key] for key in ("prompt", "chosen", "rejected")}
            file.write(json.dumps(pair) + "\n")
    (output / "fit.toml").write_text(FIT.format(output=output, start=start, trained=TRAINED))

    # Two halves of the questions in random order: one is the baseline's.
    order = list(range(len(sft)))
    random.Random(1).shuffle(order)
    half = len(order) // 2
    for name, answers, chosen in [
        ("baseline", sft, order[:half]),
        ("healthy", sft, order[half:]),
        ("shifted", rlhf, order[half:]),
    ]:
        with open(output / f"{name}.jsonl", "w") as file:
            for at, index in enumerate(chosen):
                prompt, response = answers[index]
                row = {"step": 1 + at * WINDOWS // len(chosen), "prompt": prompt, "response": response}
                file.write(json.dumps(row) + "\n")
    (output / "server.toml").write_text(f"[monitor]\nmin_window = {half // WINDOWS}\n")
    print(len(rows), "pairs fit;", len(sft), "answers of each kind")


if __name__ == "__main__":
    main()
