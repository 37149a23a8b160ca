"""Makes tests/golden/gguf_families: a small GGUF file of each architecture beside `llama`, and what PyTorch computes.

Made with gguf 0.19.0, torch 2.15.0, transformers 5.24.0 and accelerate, which it asks for, and with what
`gguf_vocabularies.py` needs. Run it from anywhere, without arguments; it replaces the folder. NAME.gguf has a random model of transformers' as llama.cpp would write it: matrices in Q8_0, names and metadata by
the gguf package, Gemma's scales of norms with the one that is added to them. NAME.safetensors has ids, lengths: sequences,
laid end to end, and hidden [n, hidden]: after the final norm, at each last token, of the dequantised model.
tokenizers.json has texts and, for each NAME, their ids by the tokenizer that its vocabulary came from.

transformers reads the tensors of most of these architectures itself, and has to compute the same of them. Its readings of
the metadata leave out soft-caps, scales and half of the rotary embedding: the configuration is given.
"""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers as hf
from families import randomise
from gguf import GGMLQuantizationType as Type
from gguf_vocabularies import SAMPLES, VOCABULARIES
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parent / "gguf_families"
LENGTHS = [1, 2, 17, 64, 97]
COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LOCAL, GLOBAL = 10000.0, 5000.0


def rope(**parameters):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": GLOBAL, **parameters}}


MODELS = {
    "qwen2": lambda: (hf.Qwen2Model, hf.Qwen2Config(**COMMON, **rope())),
    "qwen3": lambda: (hf.Qwen3Model, hf.Qwen3Config(**COMMON, **rope(), head_dim=16)),
    "phi3": lambda: (
        hf.Phi3Model,
        hf.Phi3Config(**COMMON, **rope(partial_rotary_factor=0.5), sliding_window=45),
    ),
    "phi3_long": lambda: (
        hf.Phi3Model,
        hf.Phi3Config(
            **{**COMMON, "max_position_embeddings": 1024},
            original_max_position_embeddings=256,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": GLOBAL,
                "short_factor": [1.1, 1.3, 1.5, 1.7],
                "long_factor": [2.0, 3.0, 5.0, 9.0],
            },
        ),
    ),
    "gemma2": lambda: (
        hf.Gemma2Model,
        hf.Gemma2Config(
            **COMMON,
            **rope(),
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=21,
            attn_logit_softcapping=2.0,
        ),
    ),
    # Six layers: the last has no window.
    "gemma3": lambda: (
        hf.Gemma3TextModel,
        hf.Gemma3TextConfig(
            **{**COMMON, "num_hidden_layers": 6},
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=33,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": GLOBAL},
                "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL},
            },
        ),
    ),
}
ARCHITECTURES = {
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "phi3_long": gguf.MODEL_ARCH.PHI3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
}


def metadata(written, config):
    """As llama.cpp's convert_hf_to_gguf.py says it of each architecture."""
    kind = config.model_type
    head_dim = getattr(config, "head_dim", None)
    written.add_vocab_size(config.vocab_size)
    written.add_block_count(config.num_hidden_layers)
    written.add_context_length(config.max_position_embeddings)
    written.add_embedding_length(config.hidden_size)
    written.add_feed_forward_length(config.intermediate_size)
    written.add_head_count(config.num_attention_heads)
    written.add_head_count_kv(config.num_key_value_heads)
    written.add_layer_norm_rms_eps(config.rms_norm_eps)
    if head_dim and kind in ("qwen3", "gemma2", "gemma3_text"):
        written.add_key_length(head_dim)
        written.add_value_length(head_dim)
    parameters = config.rope_parameters
    written.add_rope_freq_base(parameters.get("full_attention", parameters)["rope_theta"])
    if kind == "phi3":
        channels = config.hidden_size // config.num_attention_heads
        written.add_rope_dimension_count(int(channels * parameters["partial_rotary_factor"]))
        written.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        written.add_sliding_window(config.sliding_window or 0)
        if parameters["rope_type"] == "longrope":
            scale = config.max_position_embeddings / config.original_max_position_embeddings
            original = config.original_max_position_embeddings
            written.add_rope_scaling_attn_factors((1 + np.log(scale) / np.log(original)) ** 0.5)
            for length in ("long", "short"):
                factors = np.array(parameters[f"{length}_factor"], dtype=np.float32)
                written.add_tensor(f"rope_factors_{length}.weight", factors)
    if kind.startswith("gemma"):
        written.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        written.add_attn_logit_softcapping(config.attn_logit_softcapping)
        written.add_final_logit_softcapping(config.final_logit_softcapping)
    if kind == "gemma3_text":
        written.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        written.add_rope_scaling_factor(parameters["full_attention"]["factor"])


def hidden(model, sequences):
    with torch.no_grad():
        return torch.stack([model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in sequences])


def make(name):
    """The ids of the texts."""
    cls, config = MODELS[name]()
    config._attn_implementation = "eager"
    path, architecture = FOLDER / f"{name}.gguf", ARCHITECTURES[name]
    written = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    config.vocab_size, ids = VOCABULARIES[config.model_type](written)
    model = cls(config).eval()
    randomise(model)
    metadata(written, config)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for own, tensor in model.named_parameters():
        theirs = names.get_name(f"model.{own}", try_suffixes=(".weight", ".bias"))
        assert theirs, own
        values = tensor.detach().numpy()
        if own.endswith("norm.weight") and config.model_type.startswith("gemma"):
            values = values + 1
        if values.ndim == 1:
            written.add_tensor(theirs, values)
            continue
        blocks = gguf.quantize(values, Type.Q8_0)
        written.add_tensor(theirs, blocks, raw_dtype=Type.Q8_0)
        tensor.data = torch.from_numpy(gguf.dequantize(blocks, Type.Q8_0).copy())
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()

    generator = torch.Generator().manual_seed(9)
    sequences = [torch.randint(config.vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]
    found = hidden(model, sequences)
    save_file(
        {
            "ids": torch.tensor(sum(sequences, []), dtype=torch.int32),
            "lengths": torch.tensor(LENGTHS, dtype=torch.int32),
            "hidden": found,
        },
        FOLDER / f"{name}.safetensors",
    )
    # It finds no fused tensors.
    if config.model_type != "phi3":
        loaded = cls.from_pretrained(
            FOLDER, gguf_file=path.name, config=config, dtype=torch.float32, attn_implementation="eager"
        )
        difference = (hidden(loaded.eval(), sequences) - found).abs().max().item()
        print(f"{name}: transformers' own reading within {difference:.1e}")
        assert difference < 1e-5
    return ids


if __name__ == "__main__":
    assert hf.__version__ == "5.24.0" and torch.__version__.startswith("2.15.0")
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    golden = {"texts": SAMPLES, "ids": {name: make(name) for name in MODELS}}
    (FOLDER / "tokenizers.json").write_text(json.dumps(golden, ensure_ascii=False))
