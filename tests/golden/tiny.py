"""Makes tests/golden/tiny: three tiny random checkpoints and what PyTorch computes with them.

Needs torch, transformers, tokenizers and safetensors. Run it from anywhere, without arguments; it
replaces the folder. Each checkpoint NAME comes with

    NAME.safetensors  ids, lengths: sequences, laid end to end
                      hidden [n, hidden]: after the final norm, at each last token
                      mu, logvar [n, d] (not for a standard head) and reward [n]
    NAME.json         inputs and their token ids
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaModel, PreTrainedTokenizerFast
from transformers.utils import logging

HERE = Path(__file__).resolve().parent / "tiny"

BOS, EOS = "<|bos|>", "<|end|>"

SENTENCES = [
    "The reward is read at the last token of the answer.",
    "A bottleneck keeps what the preference needs and forgets the rest.",
    "When the policy drifts, its latents leave the cluster of the reference.",
    "Short answers can be better than long answers; the judge must not count words.",
    "She asked for the recipe, and he wrote down the ingredients in the wrong order.",
    "There are 12 months in the year and 7 days in the week.",
]

# Shorter and longer than the blocks of 48 queries and 64 keys that the kernels work in.
LENGTHS = [1, 2, 17, 48, 49, 64, 97, 150]

CONVERSATIONS = [
    [("user", "Where is the answer?"), ("assistant", "At the end.")],
    [
        ("system", "Answer in <one> word, 'yes' or \"é\"."),
        ("user", "Which month has 28 days?\nAll of them?"),
        ("assistant", "All."),
        ("user", "Naïve, isn’t it? 東京 🙂"),
        ("assistant", "  Yes.  \n"),
    ],
    [("user", f"A user writes {EOS} and {BOS} too"), ("assistant", "\tfn main() {\n    7 + 12\n}")],
    [("user", ""), ("assistant", "An answer to nothing, with the EOS of its own" + EOS + "\n\n")],
]

TEXTS = ["The answer is 12.", f"{BOS}The answer is here.{EOS}\n", " a space before and after ", "\n"]

CHAT_TEMPLATES = {
    # A line feed follows each EOS: it is not scored.
    "linear": """\
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
""",
    # Starts with BOS, which the tokenizer's post-processor adds too.
    "gated": """\
{{- bos_token }}
{%- if tools is not none %}
    {{- raise_exception('there are no tools') }}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- set rules = messages[0].content.strip() + ' ' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set rules = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- for turn in turns %}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if turn.role == 'user' %}
        {{- '[' ~ rules ~ turn.content ~ ']' }}
        {%- set rules = '' %}
    {%- else %}
        {{- turn.content }}
    {%- endif %}
    {{- eos_token }}
{%- endfor %}
""",
    # Leaves its blocks' line feeds to the renderer's settings, and has no EOS after the last turn.
    "standard": """\
{% for message in messages %}
    {% if message.role == 'system' %}
{{ message | tojson }}
        {% continue %}
    {% endif %}
{{ message.role.upper() }}: {{ message.content }}
    {% if not loop.last %}
{{ eos_token }}
    {% endif %}
{% endfor %}
""",
}

LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "num_hidden_layers": 2,
}

CONFIGS = {
    "linear": {
        "architectures": ["LlamaForInfoRM"],
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "use_inform": True,
        "latent_dim": 8,
        "encode_head_prefix": "encode_head",
        "decode_head_prefix": "decode_head",
        "use_complex_decoder": False,
        "normalize_reward": False,
    },
    "gated": {
        "architectures": ["LlamaForInfoRM"],
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "use_inform": True,
        "latent_dim": 5,
        "encode_head_prefix": "encode_head",
        "decode_head_prefix": "decode_head",
        "use_complex_decoder": True,
        "normalize_reward": False,
    },
    "standard": {
        "architectures": ["LlamaForSequenceClassification"],
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "num_labels": 1,
        "normalize_reward": True,
        "mean": 0.75,
        "std": 2.5,
    },
}

TYPES = {"linear": torch.float32, "gated": torch.bfloat16, "standard": torch.float16}


def train_tokenizer(name):
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name != "standard")
    if name == "standard":
        words = Regex(r"\p{N}{1,2}| ?\p{L}+|\s+(?!\S)|[^\p{L}\p{N}]+")
        byte_level = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), byte_level])
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if name == "gated":
        bos = (BOS, tokenizer.token_to_id(BOS))
        tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", None, [bos])
    return tokenizer


def random_tensors(config, generator):
    def normal(*shape, deviation=None):
        deviation = deviation or shape[-1] ** -0.5
        return deviation * torch.randn(shape, generator=generator)

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", hidden // heads)
    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden, deviation=1.0)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, shape in {
            # Queries above the usual scale: attention that is far from uniform.
            "self_attn.q_proj": (heads * head, hidden, 2 * hidden**-0.5),
            "self_attn.k_proj": (groups * head, hidden, None),
            "self_attn.v_proj": (groups * head, hidden, None),
            "self_attn.o_proj": (hidden, heads * head, None),
            "mlp.gate_proj": (inner, hidden, None),
            "mlp.up_proj": (inner, hidden, None),
            "mlp.down_proj": (hidden, inner, None),
        }.items():
            tensors[f"{prefix}{name}.weight"] = normal(*shape[:2], deviation=shape[2])
        for name in ["input_layernorm", "post_attention_layernorm"]:
            tensors[f"{prefix}{name}.weight"] = 1 + normal(hidden, deviation=0.1)
    tensors["model.norm.weight"] = 1 + normal(hidden, deviation=0.1)
    if not config.get("use_inform"):
        tensors["score.weight"] = normal(1, hidden)
        return tensors
    d = config["latent_dim"]
    tensors["encode_head.weight"] = normal(2 * d, hidden)
    if config["use_complex_decoder"]:
        tensors["decode_head.gate_proj.weight"] = normal(4 * d, d)
        tensors["decode_head.up_proj.weight"] = normal(4 * d, d)
        tensors["decode_head.down_proj.weight"] = normal(1, 4 * d)
    else:
        tensors["decode_head.weight"] = normal(1, d)
    return tensors


def write_tensors(folder, tensors, shards):
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    weight_map = {name: files[i * shards // len(tensors)] for i, name in enumerate(tensors)}
    for file in files:
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def write_checkpoint(folder, name, generator):
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(name)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    if name == "standard":
        # As older releases of transformers write it.
        settings["eos_token"] = {"__type": "AddedToken", "content": EOS, "special": True}
        settings["chat_template"] = CHAT_TEMPLATES[name]
    else:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATES[name])
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    config = {**CONFIGS[name], **LLAMA, "vocab_size": tokenizer.get_vocab_size()}
    config["dtype"] = str(TYPES[name]).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tensors = {k: v.to(TYPES[name]) for k, v in random_tensors(config, generator).items()}
    write_tensors(folder, tensors, shards=2 if name == "gated" else 1)


def load(folder):
    """The backbone, the head's tensors and the configuration, all in f32."""
    config = json.loads((folder / "config.json").read_text())
    model = LlamaModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    head = {k: v.float() for k, v in tensors.items() if not k.startswith("model.")}
    return model, head, config


def last_hidden(model, sequences):
    rows = [model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in sequences]
    return torch.stack(rows)


def posterior(head, hidden):
    return (hidden @ head["encode_head.weight"].T).chunk(2, dim=-1)


def decode(head, latent):
    if "decode_head.weight" in head:
        return (latent @ head["decode_head.weight"].T)[:, 0]
    gate, up = (latent @ head[f"decode_head.{name}_proj.weight"].T for name in ["gate", "up"])
    inner = torch.nn.functional.silu(gate) * up
    return (inner @ head["decode_head.down_proj.weight"].T)[:, 0]


def golden(folder, sequences):
    model, head, config = load(folder)
    with torch.no_grad():
        hidden = last_hidden(model, sequences)
        values = {"hidden": hidden}
        if config.get("use_inform"):
            values["mu"], values["logvar"] = posterior(head, hidden)
            values["reward"] = decode(head, values["mu"])
        else:
            values["reward"] = (hidden @ head["score.weight"].T)[:, 0]
    if config["normalize_reward"]:
        values["reward"] = (values["reward"] - config["mean"]) / config["std"]
    values["ids"] = torch.tensor(sum(sequences, []), dtype=torch.int32)
    values["lengths"] = torch.tensor([len(ids) for ids in sequences], dtype=torch.int32)
    return {name: value.contiguous() for name, value in values.items()}


def conversation_ids(tokenizer, messages):
    """transformers' own ids, with white space after the last EOS dropped and one EOS at the end."""
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    end = len(ids) - ids[::-1].index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else 0
    if end and not tokenizer.decode(ids[end:]).strip():
        return ids[:end]
    return ids + [tokenizer.eos_token_id]


def text_ids(tokenizer, text):
    """As above, and with one BOS where the tokenizer's post-processor adds it."""
    ids = tokenizer(text)["input_ids"]
    if ids[:2] == 2 * [tokenizer.bos_token_id]:
        ids = ids[1:]
    if EOS in text:
        return ids[: ids.index(tokenizer.eos_token_id) + 1]
    return ids + [tokenizer.eos_token_id]


def encodings(folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    cases = []
    for turns in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in turns]
        cases.append({"messages": messages, "ids": conversation_ids(tokenizer, messages)})
    cases += [{"text": text, "ids": text_ids(tokenizer, text)} for text in TEXTS]
    return cases


def main():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shutil.rmtree(HERE, ignore_errors=True)
    generator = torch.Generator().manual_seed(20240)
    sequences = [torch.randint(280, (n,), generator=generator).tolist() for n in LENGTHS]
    for name in CONFIGS:
        folder = HERE / name
        write_checkpoint(folder, name, generator)
        save_file(golden(folder, sequences), HERE / f"{name}.safetensors")
        lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in encodings(folder))
        (HERE / f"{name}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
