"""Makes tests/golden/ensemble: members of an ensemble, PyTorch's rewards of each, and what NumPy makes of them.

Made with torch 2.15.0, transformers 5.24.0 and numpy 2.4.6. Run it from anywhere, without arguments; it replaces the folder.
`first` and `second` have the same backbone with different InfoRM heads, `third` another one with a standard head; folders
are without a tokenizer.

    ensemble.safetensors  ids, lengths: sequences, laid end to end
                          members [members, n]: PyTorch's rewards, normalised where the member asks for it
                          mean, variance, uwo (lambda 0.5), wco [n]: NumPy's, in float64
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from heads import config, last_hidden, randomise
from safetensors.torch import save_file
from torch.nn.functional import silu
from transformers import LlamaModel
from transformers.utils import logging

HERE = Path(__file__).resolve().parent / "ensemble"

LENGTHS = [1, 3, 9, 21, 60, 60]

# Latent dimensions.
D = 4

MEMBERS = {
    "first": {"use_inform": True, "latent_dim": D, "use_complex_decoder": False},
    "second": {
        "use_inform": True,
        "latent_dim": D,
        "use_complex_decoder": True,
        "normalize_reward": True,
        "mean": 0.25,
        "std": 1.5,
    },
    "third": {},
}


def random_head(keys):
    shapes = {"score": (1, 16)}
    if keys.get("use_inform"):
        shapes = {"encode_head": (2 * D, 16), "decode_head": (1, D)}
    if keys.get("use_complex_decoder"):
        parts = {"gate_proj": (4 * D, D), "up_proj": (4 * D, D), "down_proj": (1, 4 * D)}
        shapes = {"encode_head": (2 * D, 16)} | {f"decode_head.{part}": shape for part, shape in parts.items()}
    return {f"{name}.weight": torch.randn(shape) * shape[1] ** -0.5 for name, shape in shapes.items()}


def rewards(head, keys, hidden):
    if "score.weight" in head:
        raw = hidden @ head["score.weight"].T
    else:
        mu = (hidden @ head["encode_head.weight"].T)[:, :D]
        if "decode_head.weight" in head:
            raw = mu @ head["decode_head.weight"].T
        else:
            gate, up, down = (head[f"decode_head.{part}_proj.weight"] for part in ["gate", "up", "down"])
            raw = (silu(mu @ gate.T) * (mu @ up.T)) @ down.T
    if keys.get("normalize_reward"):
        raw = (raw - keys["mean"]) / keys["std"]
    return raw[:, 0]


def main():
    logging.set_verbosity_error()
    shutil.rmtree(HERE, ignore_errors=True)
    torch.manual_seed(10)
    sequences = [torch.randint(280, (n,)).tolist() for n in LENGTHS]
    # The last two begin alike.
    sequences[-1][:30] = sequences[-2][:30]
    common, other = (randomise(LlamaModel(config())) for _ in range(2))
    members = []
    for name, keys in MEMBERS.items():
        backbone = other if name == "third" else common
        head = random_head(keys)
        folder = HERE / name
        folder.mkdir(parents=True)
        tensors = {f"model.{key}": tensor for key, tensor in backbone.state_dict().items()}
        save_file(tensors | head, folder / "model.safetensors", {"format": "pt"})
        family = "LlamaForInfoRM" if keys else "LlamaForSequenceClassification"
        written = config().to_dict() | {"architectures": [family]} | keys
        written = {key: value for key, value in written.items() if value is not None and "label" not in key}
        (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n")
        with torch.no_grad():
            members.append(rewards(head, keys, last_hidden(backbone, sequences)))
    members = torch.stack(members)
    values = members.double().numpy()
    mean, variance = np.mean(values, axis=0), np.var(values, axis=0)
    aggregated = {"mean": mean, "variance": variance, "uwo": mean - 0.5 * variance, "wco": np.min(values, axis=0)}
    golden = {name: torch.from_numpy(value) for name, value in aggregated.items()} | {
        "members": members,
        "ids": torch.tensor(sum(sequences, []), dtype=torch.int32),
        "lengths": torch.tensor([len(ids) for ids in sequences], dtype=torch.int32),
    }
    save_file(golden, HERE / "ensemble.safetensors")
    print(members)


if __name__ == "__main__":
    main()
