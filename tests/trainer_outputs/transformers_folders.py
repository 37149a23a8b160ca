"""What `trainer export` and `trainer merge` write, beside transformers and torch.

    pip install -r tests/trained_families/requirements.txt
    cargo build --release
    python tests/trainer_outputs/transformers_folders.py

Of every family's model in tests/golden/families, with its standard head and with an InfoRM head that is folded: the server's
rewards, those of a server on the exported folder, and those that transformers computes with it in f32, all texts in
one padded batch. The code of the exported model card is run as it stands there. Averages are compared with torch's.
"""

import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
PROGRAMS = ROOT / "target/release"
TEXT_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
CONVERSATIONS = [
    [{"role": "user", "content": "Where is the answer?"}, {"role": "assistant", "content": "At the end."}],
    [
        {"role": "user", "content": "Which month has 28 days?"},
        {"role": "assistant", "content": "All of them, naïve friend 🙂"},
        {"role": "user", "content": "And 31? " * 9},
        {"role": "assistant", "content": "Seven."},
    ],
    [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}],
]
# Beside rewards of a size of one.
TOLERANCE = 1e-5


def trainer(*arguments):
    subprocess.run([PROGRAMS / "trainer", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def server(model):
    command = [PROGRAMS / "inform-server", "--model", model, "--port", "0", "--dtype", "f32", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if found := re.search(r"listening on (http://[0-9.:]+)", line):
                break
        else:
            raise RuntimeError(f"{model} is not served")
        yield found[1]
    finally:
        process.kill()
        process.wait()


def served(model, inputs):
    with server(model) as url:
        body = json.dumps({"inputs": inputs, "return_latents": False}).encode()
        request = urllib.request.Request(f"{url}/reward", body, {"content-type": "application/json"})
        answer = json.load(urllib.request.urlopen(request))
    assert None not in answer["rewards"], answer
    return torch.tensor(answer["rewards"])


def loaded(folder, ids):
    """transformers' rewards of ragged sequences in one batch."""
    model, notes = hf.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(notes[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), notes
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(batch["input_ids"], batch["attention_mask"]).logits[:, 0]


def compare(model, exported, what):
    config = json.loads((exported / "config.json").read_text())
    eos = hf.AutoTokenizer.from_pretrained(exported).eos_token_id
    generator = torch.Generator().manual_seed(3)
    lengths = [1, 90, 33, 150, 7]
    ids = [torch.randint(2, config["vocab_size"], (n,), generator=generator).tolist() + [eos] for n in lengths]
    inputs = [{"input_ids": one} for one in ids]
    original, again, torchs = served(model, inputs), served(exported, inputs), loaded(exported, ids)
    own = (again - original).abs().max().item()
    other = (torchs - again).abs().max().item()
    print(f"{what}: served again within {own:.1e}, transformers within {other:.1e}")
    assert own < TOLERANCE and other < TOLERANCE, (original, again, torchs)


def families(scratch):
    for family in sorted(path for path in (GOLDEN / "families").iterdir() if path.is_dir()):
        model = scratch / family.name
        shutil.copytree(family, model)
        for name in TEXT_FILES:
            shutil.copy(GOLDEN / "tiny/linear" / name, model / name)
        exported = scratch / "exported"
        trainer("export", "--model", model, "--output", exported)
        compare(model, exported, f"{family.name}, standard")
        inform = scratch / f"{family.name}-inform"
        trainer("init-head", "--model", model, "--output", inform, "--latent-dim", 6)
        trainer("export", "--model", inform, "--output", exported, "--fold-head")
        compare(inform, exported, f"{family.name}, folded")


def card(scratch):
    """Texts, by the model card's own code."""
    for name in ["tiny/linear", "saved/llama", "saved/qwen2"]:
        model, exported = GOLDEN / name, scratch / "with-card"
        folds = ["--fold-head"] if "linear" in name else []
        trainer("export", "--model", model, "--output", exported, *folds)
        code = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)[1]
        names = {"FOLDER": str(exported)}
        exec(code, names)
        with torch.no_grad():
            found = names["rewards"](CONVERSATIONS)
        expected = served(model, [{"messages": messages} for messages in CONVERSATIONS])
        difference = (found - expected).abs().max().item()
        print(f"{name}: the card's code within {difference:.1e} of the server")
        assert difference < TOLERANCE, (found, expected)
        text = names["tokenizer"].apply_chat_template(CONVERSATIONS[0], tokenize=False).rstrip()
        scored = hf.pipeline("text-classification", model=names["model"], tokenizer=names["tokenizer"])(
            text, add_special_tokens=False, return_token_type_ids=False
        )
        assert abs(scored[0]["score"] - expected[0].item()) < TOLERANCE, (scored, expected)


def averages(scratch):
    source = load_file(GOLDEN / "tiny/linear/model.safetensors")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        members = []
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            folder = scratch / f"member-{seed}"
            shutil.copytree(GOLDEN / "tiny/linear", folder, dirs_exist_ok=True)
            moved = {
                name: (tensor + 0.01 * torch.randn(tensor.shape, generator=generator)).to(dtype)
                for name, tensor in source.items()
            }
            save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
            members.append((folder, moved))
        weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
        folders = [folder for folder, _ in members]
        trainer("merge", "--model", *folders, "--weights", 1, 2, 5, "--output", scratch / "merged")
        merged = load_file(scratch / "merged/model.safetensors")
        for name, found in merged.items():
            total = sum(weight * moved[name].double() for weight, (_, moved) in zip(weights, members))
            mean = (total / weights.sum()).numpy()
            # numpy and torch round f64 to bf16 by way of f32.
            expected = torch.from_numpy(mean).to(dtype)
            assert found.dtype == dtype
            differ = (found != expected).sum().item()
            assert differ == 0 or dtype != torch.float32 and differ < 3, (name, dtype, differ)
        print(f"average in {dtype}: {len(merged)} tensors as torch has them")


if __name__ == "__main__":
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        averages(Path(scratch))
        card(Path(scratch))
        families(Path(scratch))
    print("all rewards agree")
