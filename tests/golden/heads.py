"""Makes tests/golden/heads: tiny random models with the reward heads of several libraries, and PyTorch's rewards.

Made with torch 2.15.0 and transformers 5.24.0. Run it from anywhere, without arguments; it replaces the folder. Each
model NAME, a `config.json` and weights without a tokenizer, comes with

    NAME.safetensors  ids, lengths: sequences, laid end to end
                      outputs [n, labels]: of the head at each last token
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    LlamaPreTrainedModel,
)
from transformers.utils import logging

HERE = Path(__file__).resolve().parent / "heads"

LENGTHS = [1, 2, 7, 17, 40]

OBJECTIVES = ["helpfulness", "correctness", "brevity"]


def config(**keys):
    return LlamaConfig(
        vocab_size=280,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        pad_token_id=0,
        **keys,
    )


class CriticModel(LlamaPreTrainedModel):
    """As OpenRLHF makes its critics and reward models: the backbone, and a layer whose name the configuration has."""

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        setattr(self, config.value_head_prefix, nn.Linear(config.hidden_size, 1, bias=False))
        self.post_init()


class RewardModel(CriticModel):
    pass


def randomise(model):
    """Weights at the usual scale instead of a first training's, and biases that are not zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
            elif "embed" in name or parameter.ndim == 1:
                parameter.normal_()
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval()


def last_hidden(backbone, sequences):
    return torch.stack([backbone(torch.tensor([ids])).last_hidden_state[0, -1] for ids in sequences])


def last_logits(model, sequences):
    """What a class of transformers itself gives for the last token."""
    return torch.stack([model(torch.tensor([ids])).logits.reshape(-1, model.num_labels)[-1] for ids in sequences])


def trl(sequences):
    """TRL's causal model with a value head stores the model's tensors as they are, and `v_head.summary` beside them."""
    model = randomise(LlamaForCausalLM(config(tie_word_embeddings=True)))
    summary = randomise(nn.Linear(16, 1))
    model.save_pretrained(HERE / "trl")
    file = HERE / "trl" / "model.safetensors"
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    tensors |= {f"v_head.summary.{name}": tensor for name, tensor in summary.state_dict().items()}
    save_file(tensors, file, {"format": "pt"})
    return summary(last_hidden(model.model, sequences))


def neox_tokens(sequences):
    """Its head has another name than that of the other classes for tokens."""
    keys = {"vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    model = GPTNeoXForTokenClassification(GPTNeoXConfig(**keys, num_hidden_layers=2, num_labels=1))
    randomise(model).save_pretrained(HERE / "neox_tokens")
    return last_logits(model, sequences)


def main():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shutil.rmtree(HERE, ignore_errors=True)
    torch.manual_seed(8)
    sequences = [torch.randint(280, (n,)).tolist() for n in LENGTHS]
    labels = dict(enumerate(OBJECTIVES))
    models = {
        "objectives": LlamaForSequenceClassification(config(id2label=labels)),
        "tokens": LlamaForTokenClassification(config(num_labels=1)),
        "reward": RewardModel(config(value_head_prefix="score")),
        "critic": CriticModel(config(value_head_prefix="value_head")),
        "own_name": RewardModel(config(value_head_prefix="reward_layer")),
    }
    outputs = {}
    with torch.no_grad():
        for name, model in models.items():
            randomise(model).save_pretrained(HERE / name)
            prefix = getattr(model.config, "value_head_prefix", None)
            if prefix:
                outputs[name] = getattr(model, prefix)(last_hidden(model.model, sequences))
            else:
                outputs[name] = last_logits(model, sequences)
        outputs["trl"] = trl(sequences)
        outputs["neox_tokens"] = neox_tokens(sequences)
    for name, values in outputs.items():
        (HERE / name / "generation_config.json").unlink(missing_ok=True)
        golden = {
            "outputs": values.contiguous(),
            "ids": torch.tensor(sum(sequences, []), dtype=torch.int32),
            "lengths": torch.tensor([len(ids) for ids in sequences], dtype=torch.int32),
        }
        save_file(golden, HERE / f"{name}.safetensors")
        keys = json.loads((HERE / name / "config.json").read_text())
        print(name, keys["architectures"], [round(value, 3) for value in values[:, 0].tolist()])


if __name__ == "__main__":
    main()
