"""Makes family_gradients.safetensors: the gradients of the InfoRM loss of every decoder family, from PyTorch's autograd.

Run it after families.py; made with torch 2.15.0 and transformers 5.24.0. It holds

    ids, lengths               sequences that begin alike, as gradients.py makes them
    noise                      eps [n, d] of the reparameterised latents
    encode_head.weight, decode_head.weight    a head for every model: [2 d, hidden], [1, d]
    NAME.loss                  of the model in families/NAME
    NAME [tensors, 33]         of the gradient of each of its tensors and the head's, in the order of their names: the norm
                               and 32 signed sums, see gradients.py
"""

from pathlib import Path

import torch
import transformers as hf
from families import HERE as FAMILIES
from families import MODELS
from gradients import alike, loss, sketch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
HIDDEN, LATENT = 16, 5


def gradients(name, sequences, head, noise):
    cls, _ = MODELS[name]()
    model = cls.from_pretrained(FAMILIES / name, attn_implementation="eager", dtype=torch.float32)
    prefix = model.base_model_prefix
    backbone = getattr(model, prefix)
    backbone.config.use_cache = False
    head = {tensor: value.clone().requires_grad_() for tensor, value in head.items()}
    total = loss(backbone.eval(), head, sequences, noise)
    total.backward()
    tensors = {f"{prefix}.{tensor}": value for tensor, value in backbone.named_parameters()} | head
    return total.detach()[None], torch.stack([sketch(tensors[name].grad) for name in sorted(tensors)])


def main():
    generator = torch.Generator().manual_seed(12)
    sequences = alike(generator)
    noise = torch.randn(len(sequences), LATENT, generator=generator)
    head = {
        "encode_head.weight": torch.randn(2 * LATENT, HIDDEN, generator=generator) * HIDDEN**-0.5,
        "decode_head.weight": torch.randn(1, LATENT, generator=generator) * LATENT**-0.5,
    }
    golden = {
        "ids": torch.tensor(sum(sequences, []), dtype=torch.int32),
        "lengths": torch.tensor([len(ids) for ids in sequences], dtype=torch.int32),
        "noise": noise,
        **head,
    }
    for name in MODELS:
        total, sketches = gradients(name, sequences, head, noise)
        golden[f"{name}.loss"], golden[name] = total, sketches.float()
        print(f"{name}: loss {total.item():.4f}, {len(sketches)} tensors")
    save_file(golden, HERE / "family_gradients.safetensors")


if __name__ == "__main__":
    assert hf.__version__ == "5.24.0" and torch.__version__.startswith("2.15.0")
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    main()
