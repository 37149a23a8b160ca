"""Adapters that `mode = "lora"` wrote, read by PEFT: the base with them gives what the merged checkpoint gives.

    pip install -r tests/trained_families/requirements.txt
    cargo build --release
    python tests/trainer_outputs/adapter.py

Prints how far the adapters move the demo checkpoint's hidden states, and the largest difference between the two ways.
`.ci/full` runs it where `TRANSFORMERS_PYTHON` names a Python that has these packages.
"""

import json
import random
import subprocess
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaForSequenceClassification

ROOT = Path(__file__).parents[2]
BASE = ROOT / "configs/demo"
SETTINGS = """
output = {output}
mode = "lora"
weight_type = "f32"
[lora]
rank = 4
alpha = 8
[start]
folder = {base}
[head]
kind = "standard"
[data]
files = [{data}]
[optimiser]
learning_rate = 1e-2
[schedule]
epochs = 1
pairs_per_step = 8
"""


def pairs():
    words = "the cat sat on a mat and looked at me with large green eyes until it was late".split()
    draw = random.Random(0)
    for number in range(64):
        chosen, rejected = (" ".join(draw.choices(words, k=12)) for _ in range(2))
        yield {"prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected}


def load(folder):
    return LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1)


def hidden(decoder, ids):
    with torch.no_grad():
        return decoder(ids).last_hidden_state


def main():
    with tempfile.TemporaryDirectory() as work:
        data, output, settings = (Path(work) / name for name in ("pairs.jsonl", "output", "settings.toml"))
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs()))
        settings.write_text(SETTINGS.format(**{
            name: json.dumps(str(path)) for name, path in (("output", output), ("base", BASE), ("data", data))
        }))
        subprocess.run([ROOT / "target/release/trainer", "fit", "--config", settings], check=True, stdout=subprocess.DEVNULL)
        ids = torch.randint(5, 4000, (2, 40), generator=torch.Generator().manual_seed(0))
        base = load(BASE)
        before = hidden(base.model, ids)
        adapted = hidden(PeftModel.from_pretrained(base, output / "adapter").base_model.model.model, ids)
        merged = hidden(load(output).model, ids)
    moved, apart = ((a - adapted).abs().max().item() for a in (before, merged))
    print(f"the adapters move hidden states by up to {moved:.3f}; base with adapters to merged: {apart:.1e}")
    assert moved > 0.1 and apart < 1e-5


main()
