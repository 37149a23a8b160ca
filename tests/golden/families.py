"""Makes tests/golden/families: tiny random models of every decoder family, and what PyTorch computes with them.

Made with torch 2.15.0 and transformers 5.24.0. Run it from anywhere, without arguments or with the names of models to
make again. Each NAME is a folder as `save_pretrained` of a `*ForSequenceClassification` with one label writes it, and

    NAME.safetensors  ids, lengths: sequences, laid end to end; some begin alike
                      hidden [tokens, hidden]: after the final norm, at every token
                      reward [sequences]
"""

import sys
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent / "families"

VOCABULARY = 64
# Tokens in common with the first sequence, and tokens of its own, of each sequence: shorter and longer than the blocks of
# 48 queries and 64 keys that the kernels work in, and than the windows.
SEQUENCES = [(0, 1), (0, 150), (40, 3), (70, 27), (0, 17)]

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_labels": 1,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def llama(**rope):
    return hf.LlamaForSequenceClassification, hf.LlamaConfig(**COMMON, rope_parameters=rope)


MODELS = {
    "qwen2": lambda: (hf.Qwen2ForSequenceClassification, hf.Qwen2Config(**COMMON)),
    # The upper one of two layers has a window.
    "qwen2_sliding": lambda: (
        hf.Qwen2ForSequenceClassification,
        hf.Qwen2Config(**COMMON, use_sliding_window=True, sliding_window=30, max_window_layers=1),
    ),
    "mistral": lambda: (
        hf.MistralForSequenceClassification,
        hf.MistralConfig(**COMMON, sliding_window=37, head_dim=16),
    ),
    "llama_bias": lambda: (
        hf.LlamaForSequenceClassification,
        hf.LlamaConfig(**COMMON, attention_bias=True),
    ),
    "llama_linear": lambda: llama(rope_type="linear", rope_theta=10000.0, factor=4.0),
    # To its `max_position_embeddings`, which is as far as it is served.
    "llama_dynamic": lambda: llama(rope_type="dynamic", rope_theta=10000.0, factor=2.0),
    # With periods on both sides of both limits, and between them.
    "llama_llama3": lambda: llama(
        rope_type="llama3",
        rope_theta=500.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
    "llama_yarn": lambda: llama(
        rope_type="yarn",
        rope_theta=100.0,
        factor=4.0,
        original_max_position_embeddings=64,
        beta_fast=8.0,
        beta_slow=1.0,
    ),
    "qwen3": lambda: (hf.Qwen3ForSequenceClassification, hf.Qwen3Config(**COMMON, head_dim=8)),
    "gpt_neox": lambda: (
        hf.GPTNeoXForSequenceClassification,
        hf.GPTNeoXConfig(**COMMON, rotary_pct=0.5),
    ),
    # One residual after the other, and GELU by tanh.
    "gpt_neox_sequential": lambda: (
        hf.GPTNeoXForSequenceClassification,
        hf.GPTNeoXConfig(
            **COMMON, rotary_pct=1.0, use_parallel_residual=False, hidden_act="gelu_new"
        ),
    ),
    "phi3": lambda: (
        hf.Phi3ForSequenceClassification,
        hf.Phi3Config(**COMMON, sliding_window=45, partial_rotary_factor=0.5),
    ),
    # With texts below its original length.
    "phi3_long": lambda: (
        hf.Phi3ForSequenceClassification,
        hf.Phi3Config(
            **{**COMMON, "max_position_embeddings": 1024},
            original_max_position_embeddings=256,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 50.0,
                "short_factor": [1.1, 1.7],
                "long_factor": [2.0, 5.0],
            },
        ),
    ),
    "gemma2": lambda: (
        hf.Gemma2ForSequenceClassification,
        hf.Gemma2Config(
            **COMMON,
            head_dim=8,
            query_pre_attn_scalar=6,
            sliding_window=21,
            # Low enough to be felt.
            attn_logit_softcapping=2.0,
        ),
    ),
    "gemma3": lambda: (
        hf.Gemma3TextForSequenceClassification,
        hf.Gemma3TextConfig(
            **{**COMMON, "num_hidden_layers": 3},
            head_dim=8,
            query_pre_attn_scalar=6,
            sliding_window=33,
            sliding_window_pattern=3,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
    ),
}


def sequences():
    generator = torch.Generator().manual_seed(8)
    longest = torch.randint(VOCABULARY, (200,), generator=generator).tolist()
    own = [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for _, n in SEQUENCES]
    return [longest[:common] + tokens for (common, _), tokens in zip(SEQUENCES, own)]


def randomise(model):
    """Weights that make every part felt: scores far from uniform, norms and biases that are not trivial."""
    generator = torch.Generator().manual_seed(80)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            centre = 0.0 if "gemma" in model.config.model_type else 1.0
            noise = centre + 0.1 * noise
        elif name.endswith("bias"):
            noise = 0.3 * noise
        elif "embed" in name:
            noise = noise / (model.config.hidden_size**0.5 if "gemma" in model.config.model_type else 1)
        else:
            noise = noise * tensor.shape[-1] ** -0.5
            if any(part in name for part in ["q_proj", "qkv", "query_key_value"]):
                noise = 2 * noise
        tensor.data = noise


def make(name):
    cls, config = MODELS[name]()
    config._attn_implementation = "eager"
    model = cls(config).eval()
    randomise(model)
    model.save_pretrained(HERE / name)
    # As a user's program loads it.
    model = cls.from_pretrained(HERE / name, attn_implementation="eager", dtype=torch.float32).eval()
    backbone = getattr(model, model.base_model_prefix)
    hidden, rewards = [], []
    with torch.no_grad():
        for ids in sequences():
            ids = torch.tensor([ids])
            hidden.append(backbone(ids, use_cache=False).last_hidden_state[0])
            rewards.append(model(ids, use_cache=False).logits[0, 0])
    golden = {
        "ids": torch.tensor(sum(sequences(), []), dtype=torch.int32),
        "lengths": torch.tensor([len(ids) for ids in sequences()], dtype=torch.int32),
        "hidden": torch.cat(hidden).contiguous(),
        "reward": torch.stack(rewards),
    }
    save_file(golden, HERE / f"{name}.safetensors")
    size = golden["hidden"].square().mean().sqrt()
    print(f"{name}: hidden states {size:.2f}, rewards {golden['reward'].tolist()}")


if __name__ == "__main__":
    assert hf.__version__ == "5.24.0" and torch.__version__.startswith("2.15.0")
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    for name in sys.argv[1:] or MODELS:
        make(name)
