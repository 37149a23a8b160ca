"""Checkpoints that `trainer fit` makes of every family with tensors of its own, read by transformers and PEFT.

    pip install -r tests/trained_families/requirements.txt
    cargo build --release
    python tests/trained_families/run.py

Each family's model of tests/golden/families.py, for the vocabulary of tests/golden/tiny/linear, is trained for a step with a
standard head. transformers must load the result without a tensor missing or too many, and find the rewards that `trainer
eval` reports; the merged weights of low-rank adapters must be those that PEFT makes of the start and `adapter/`.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"
TRAINER = ROOT / "target/release/trainer"
sys.path.insert(0, str(GOLDEN))
sys.dont_write_bytecode = True

from families import COMMON, MODELS, randomise  # noqa: E402

NAMES = ["gpt_neox", "gpt_neox_sequential", "phi3", "gemma2", "gemma3", "qwen2", "qwen3", "mistral"]
TOLERANCE = 1e-5
SETTINGS = """
output = "{folder}/output"
weight_type = "f32"
{mode}
[start]
folder = "{folder}/start"
[head]
kind = "standard"
[data]
files = ["{folder}/pairs.jsonl"]
train_pairs = 24
max_tokens = 128
[optimiser]
learning_rate = 1e-2
[schedule]
kind = "constant"
pairs_per_step = 24
"""
LORA = 'mode = "lora"\n[lora]\nrank = 3\nalpha = 5\n'
MODES = [LORA, LORA + 'targets = ["q_proj", "v_proj", "down_proj"]']


def pair(number):
    prompt = f"What comes after {number}, and why is that so?"
    return {"prompt": prompt, "chosen": f"It is {number + 1}.", "rejected": f"{number * 7 % 24}! Ask."}


PAIRS = [pair(number) for number in range(40)]


def start(folder, name):
    shutil.rmtree(folder, ignore_errors=True)
    cls, config = MODELS[name]()
    model = cls(config)
    randomise(model)
    model.save_pretrained(folder)
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        shutil.copy(GOLDEN / "tiny/linear" / file, folder / file)


def trainer(*arguments):
    done = subprocess.run([TRAINER, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fit(folder, mode):
    (folder / "settings.toml").write_text(SETTINGS.format(folder=folder, mode=mode))
    trainer("fit", "--config", folder / "settings.toml")
    return load(folder / "output")


def load(folder):
    model, notes = hf.AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(notes.values()), notes
    return model.eval()


def rewards(model, folder):
    tokenizer = hf.PreTrainedTokenizerFast.from_pretrained(folder)

    def reward(pair, side):
        turns = [("user", pair["prompt"]), ("assistant", pair[side])]
        messages = [{"role": role, "content": content} for role, content in turns]
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        # Up to the end of the answer: the template's line feed is not scored.
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]
        return model(torch.tensor([ids]), use_cache=False).logits[0, 0].item()

    with torch.no_grad():
        return torch.tensor([[reward(pair, side) for side in ("chosen", "rejected")] for pair in PAIRS])


def check_rewards(folder):
    model = fit(folder, "")
    before, after = (load_file(folder / of / "model.safetensors") for of in ("start", "output"))
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before), "all is trained"
    found = rewards(model, folder / "output")
    reported = trainer("eval", "--json", "--model", folder / "output", "--data", folder / "pairs.jsonl")
    expected = {
        "margin_mean": (found[:, 0] - found[:, 1]).mean(),
        "reward_mean": found.mean(),
        "reward_std": found.std(unbiased=False),
    }
    error = max(abs(reported[key] - value.item()) for key, value in expected.items())
    assert error < TOLERANCE, error
    return error


def check_adapters(folder, mode):
    merged = dict(fit(folder, mode).named_parameters())
    model = PeftModel.from_pretrained(load(folder / "start"), str(folder / "output/adapter"))
    expected = dict(model.merge_and_unload().named_parameters())
    assert merged.keys() == expected.keys()
    origin = load_file(folder / "start/model.safetensors")
    worst, moved = 0.0, 0
    for name in merged.keys() - {"score.weight"}:
        error = ((merged[name] - expected[name]).norm() / expected[name].norm()).item()
        assert error < TOLERANCE, (name, error)
        worst = max(worst, error)
        moved += not torch.equal(origin[name], merged[name].detach())
    assert moved > 0
    return worst, moved


def main():
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    COMMON["vocab_size"] = json.loads((GOLDEN / "tiny/linear/config.json").read_text())["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
        for name in NAMES:
            start(folder / "start", name)
            said = f"{name}: rewards within {check_rewards(folder):.1e}"
            for mode in MODES:
                worst, moved = check_adapters(folder, mode)
                said += f"; adapters of {moved} weights within {worst:.1e}"
            print(said)


if __name__ == "__main__":
    main()
