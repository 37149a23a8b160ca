"""Makes tests/golden/smollm2.safetensors: SmolLM2-135M-Instruct in f32, from PyTorch.

    python smollm2.py MODEL HEAD

MODEL is the folder of the model. HEAD is the folder that tests/smollm2.rs writes from it, with a
fresh InfoRM head: run that test first.

    ids, lengths        the inputs' token ids, end to end
    hidden [n, hidden]  after the final norm, at each last token
    reward [n]
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaModel, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent

WORDS = (HERE / "words.txt").read_text(encoding="utf-8").split()
# How many words each text has; of every four the last is an answer in a conversation.
COUNTS = [0, 1, 2, 3, 5, 8, 13, 21, 25, 34, 42, 50, 55, 75, 89, 120, 144, 233, 420, 1055]
SEPARATORS = [".\n", ", ", "\n\n", ": "] + 12 * [" "]


def splitmix(state):
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def text(seed, count):
    random = splitmix(seed)
    words = ""
    for i in range(count):
        separator = SEPARATORS[next(random) % len(SEPARATORS)] if i > 0 else ""
        words += separator + WORDS[next(random) % len(WORDS)]
    return words


def ids(tokenizer, index):
    words = text(index, COUNTS[index])
    if index % 4 == 3:
        question = {"role": "user", "content": text(1000 + index, 10)}
        messages = [question, {"role": "assistant", "content": words}]
        words = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
    else:
        words += tokenizer.eos_token
    return tokenizer(words)["input_ids"]


def main(folder, head):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    # Not the class that the folder names: that one builds another pre-tokenizer than
    # tokenizer.json describes.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token=settings["eos_token"],
        chat_template=settings["chat_template"],
    )
    model = LlamaModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    sequences = [ids(tokenizer, index) for index in range(len(COUNTS))]
    print("tokens:", [len(sequence) for sequence in sequences])
    with safe_open(head / "model.safetensors", "pt") as tensors:
        encode = tensors.get_tensor("encode_head.weight").float()
        decode = tensors.get_tensor("decode_head.weight").float()
    with torch.no_grad():
        rows = [model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in sequences]
        hidden = torch.stack(rows)
        mu = (hidden @ encode.T).chunk(2, dim=-1)[0]
        reward = (mu @ decode.T)[:, 0]
    print("rewards:", reward.tolist())
    golden = {
        "ids": torch.tensor(sum(sequences, []), dtype=torch.int32),
        "lengths": torch.tensor([len(ids) for ids in sequences], dtype=torch.int32),
        "hidden": hidden,
        "reward": reward,
    }
    save_file(golden, HERE / "smollm2.safetensors")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
