"""Makes tests/golden/saved: reward models as transformers saves them, with what PyTorch makes of conversations.

Made with torch 2.15.0 and transformers 5.24.0. Run it from anywhere, without arguments; it replaces the folder. NAME is
what `save_pretrained` of model and tokenizer writes: `llama` in F32 as one file, `qwen2` in BF16 as shards. NAME.json has
the conversations and texts, their token ids and their rewards in f32, each scored alone. The tokenizer is that of
tests/golden/tiny/linear.
"""

import json
import shutil
from pathlib import Path

import torch
import transformers as hf

from families import randomise

HERE = Path(__file__).resolve().parent / "saved"
TINY = Path(__file__).resolve().parent / "tiny/linear"

COMMON = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "num_labels": 1,
}
MODELS = {
    "llama": (hf.LlamaForSequenceClassification, hf.LlamaConfig, torch.float32, {}),
    "qwen2": (
        hf.Qwen2ForSequenceClassification,
        hf.Qwen2Config,
        torch.bfloat16,
        {"max_shard_size": "8KB"},
    ),
}
TURNS = [
    ("Where is the answer?", "At the end."),
    ("Which month has 28 days?", "All of them, and there are 12 months in the year."),
    ("東京 🙂 naïve?", "Yes."),
    ("Is it longer? " * 8, "A bottleneck keeps what the preference needs and forgets the rest."),
]


def conversations():
    """Of one, two, three and all turns."""
    for count in range(1, len(TURNS) + 1):
        yield [
            {"role": role, "content": text}
            for turn in TURNS[-count:]
            for role, text in zip(("user", "assistant"), turn)
        ]


def make(name):
    cls, config, dtype, options = MODELS[name]
    tokenizer = hf.AutoTokenizer.from_pretrained(TINY)
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")}
    model = cls(config(**COMMON, **ids, vocab_size=len(tokenizer))).eval()
    randomise(model)
    folder = HERE / name
    model.to(dtype).save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)

    # As a user's program loads it.
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    cases = []
    for messages in conversations():
        text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            reward = model(torch.tensor([ids])).logits[0, 0].item()
        cases.append({"messages": messages, "input_ids": ids, "reward": reward})
    (HERE / f"{name}.json").write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")
    print(f"{name}: {[case['reward'] for case in cases]}")


if __name__ == "__main__":
    assert hf.__version__ == "5.24.0" and torch.__version__.startswith("2.15.0")
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    for name in MODELS:
        make(name)
