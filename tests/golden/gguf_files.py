"""Makes tests/golden/gguf: small GGUF files, and what the libraries of others read in them.

Needs gguf, numpy, torch, transformers, tokenizers, safetensors and sentencepiece. Run it from anywhere, without
arguments; it replaces the folder.

    types.gguf        a tensor [2, 256] of each type, of random blocks
    types.safetensors their values, by the Python package of ggml's
    rope.gguf         the factors of Llama 3's rotary embedding, by transformers
    model.gguf        a random Llama whose tensors are of several types, as llama.cpp would write it
    model.safetensors ids, lengths: sequences, laid end to end
                      hidden [n, hidden]: after the final norm, at each last token, by transformers
    PRE.gguf          a byte-level BPE tokenizer for each kind of splitting, and one of SentencePiece
    tokenizers.json   texts, and their ids in each by tokenizers, for SentencePiece by sentencepiece
"""

import io
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers import trainers
from transformers import LlamaConfig, LlamaModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "gguf"

BOS, EOS, UNKNOWN, EXTRA = "<|bos|>", "<|end|>", "<|unknown|>", "<tool>"

CORPUS = [
    "The reward is read at the last token of the answer; it's 12 or 345, or 6789.",
    "A bottleneck keeps what the preference needs and forgets the rest.",
    "    if (x == 10) {\n        return x / 2;\n    }\n\n\n",
    "She'll say WE'LL, they're, I'M and I'd.  Two spaces,   three.",
    "Grüße aus Köln! Ça va? Ελλάδα, Москва, 東京都, \u0e01\u0e34\u0e19",
    "http://example.org/a/b?c=1&d=2 (see [1], [2]) ... --- *** $100 + 20% = 120",
]

TEXTS = CORPUS + [
    "",
    " ",
    "\n",
    " \t\r\n \n",
    "Hello, world!",
    "  leading and trailing  ",
    "1 12 123 1234 12345 ½ ² Ⅷ ١٢٣",
    "don't DON'T Don’t 'tis 's 'S",
    "CamelCase snake_case SHOUTING",
    "naïve cafe\u0301 caf\u00e9 \u1e9b\u0323",
    "🙂👩‍👩‍👧‍👦 𝒳 \u200b zero-width",
    "tabs\tand\u00a0no-break\u3000ideographic",
    "a\n\nb\r\nc\n \nd",
    f"{BOS}<|end|> special{EOS}in{EXTRA}side {EXTRA}",
    "def f(x):\n\treturn x**2  # square\n",
    "日本語と한국어와中文",
    "!!!???...,,,;;; <<>> {}[]()",
    "word " * 20,
]


def words(digits):
    return Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


TEKKEN = Regex(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(use_regex):
    return pre.ByteLevel(add_prefix_space=False, use_regex=use_regex)


# Name in tokenizer.ggml.pre: normaliser, splitting, whether whole words need no merges, whether BOS is added.
SPLITTINGS = {
    "gpt-2": (None, [byte_level(True)], False, False),
    "smollm": (None, [pre.Digits(individual_digits=True), byte_level(True)], False, False),
    "llama-bpe": (None, [pre.Split(words(r"\p{N}{1,3}"), "isolated"), byte_level(False)], True, True),
    "qwen2": (normalizers.NFC(), [pre.Split(words(r"\p{N}"), "isolated"), byte_level(False)], False, False),
    "tekken": (None, [pre.Split(TEKKEN, "isolated"), byte_level(False)], True, True),
}


def writer(name, rope_freq_base=5000.0):
    written = gguf.GGUFWriter(FOLDER / f"{name}.gguf", "llama")
    written.add_block_count(2)
    written.add_context_length(512)
    written.add_embedding_length(64)
    written.add_feed_forward_length(32)
    written.add_head_count(4)
    written.add_head_count_kv(2)
    written.add_layer_norm_rms_eps(1e-5)
    written.add_rope_dimension_count(16)
    written.add_rope_freq_base(rope_freq_base)
    return written


def finish(written):
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()


def train(splitting):
    """A tokenizer whose merges cross the borders of words, so that splitting is seen in the ids."""
    normalizer, steps, ignore_merges, _ = splitting
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = byte_level(False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[BOS, EOS, UNKNOWN],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    tokenizer.add_tokens([AddedToken(EXTRA, special=False, normalized=False)])
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add_byte_level(written, tokenizer, name, adds_bos=None):
    state = json.loads(tokenizer.to_str())
    tokens = {id: token for token, id in tokenizer.get_vocab(with_added_tokens=True).items()}
    tokens = [tokens[id] for id in range(len(tokens))]
    kinds = {BOS: 3, EOS: 3, UNKNOWN: 2, EXTRA: 4}
    written.add_tokenizer_model("gpt2")
    written.add_tokenizer_pre(name)
    written.add_token_list(tokens)
    written.add_token_types([kinds.get(token, 1) for token in tokens])
    written.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    written.add_bos_token_id(tokens.index(BOS))
    written.add_eos_token_id(tokens.index(EOS))
    if adds_bos is not None:
        written.add_add_bos_token(adds_bos)


def make_tokenizers():
    golden = {"texts": TEXTS, "ids": {}}
    for name, splitting in SPLITTINGS.items():
        tokenizer = train(splitting)
        written = writer(name)
        add_byte_level(written, tokenizer, name)
        finish(written)
        bos = [tokenizer.token_to_id(BOS)] if splitting[3] else []
        ids = [tokenizer.encode(text).ids for text in TEXTS]
        golden["ids"][name] = [with_bos(row, bos) for row in ids]
    golden["ids"]["llama"] = make_sentence_piece()
    (FOLDER / "tokenizers.json").write_text(json.dumps(golden, ensure_ascii=False, indent=None))


def with_bos(ids, bos):
    """One BOS where the tokenizer adds one: as inform-server does it, never a second one."""
    return ids if not ids or ids[: len(bos)] == bos else bos + ids


def make_sentence_piece():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n") if line]),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = trained.get_piece_size()
    kinds = [
        2 if trained.is_unknown(id) else 3 if trained.is_control(id) else 6 if trained.is_byte(id) else 1
        for id in range(size)
    ]
    written = writer("llama")
    written.add_tokenizer_model("llama")
    written.add_token_list([trained.id_to_piece(id) for id in range(size)])
    written.add_token_scores([trained.get_score(id) for id in range(size)])
    written.add_token_types(kinds)
    written.add_bos_token_id(trained.bos_id())
    written.add_eos_token_id(trained.eos_id())
    written.add_unk_token_id(trained.unk_id())
    written.add_add_bos_token(True)
    finish(written)
    return [with_bos(trained.encode(text), [trained.bos_id()]) for text in TEXTS]


def random_blocks(kind, rows, columns, random):
    """Bytes of any value, but scales that are finite and of a usual size."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    places = {
        Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
        Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
    }[kind]
    for place in places:
        scale = random.normal(0, 0.01, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, place : place + 2] = scale[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def make_types():
    random = np.random.default_rng(8)
    written, values = writer("types"), {}
    for kind in [Type.F32, Type.F16, Type.BF16]:
        number = random.normal(0, 1, (2, 256)).astype(np.float32)
        stored = gguf.quantize(number, kind)
        written.add_tensor(kind.name.lower(), stored, raw_dtype=kind)
        values[kind.name.lower()] = gguf.dequantize(stored, kind).astype(np.float32).reshape(2, 256)
    for kind in [
        Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0,
        Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K,
    ]:
        blocks = random_blocks(kind, 2, 256, random)
        written.add_tensor(kind.name.lower(), blocks, raw_dtype=kind)
        values[kind.name.lower()] = gguf.dequantize(blocks, kind).reshape(2, 256)
    finish(written)
    save_file(values, FOLDER / "types.safetensors")


def make_rope():
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=131072)
    plain = 1.0 / 500000.0 ** (torch.arange(0, 16, 2).float() / 16)
    config.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    written = writer("rope", rope_freq_base=500000.0)
    written.add_tensor("token_embd.weight", np.zeros((2, 4), np.float32))
    written.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    finish(written)


def make_model():
    random = np.random.default_rng(3)
    tokenizer = train(SPLITTINGS["gpt-2"])
    written = writer("model")
    add_byte_level(written, tokenizer, "gpt-2", adds_bos=True)
    written.add_chat_template(
        "{{ bos_token }}{% for message in messages %}"
        "{{ '[' + message['role'] + ']' + message['content'] + eos_token }}{% endfor %}"
    )

    def add(name, kind, *shape, deviation=None, mean=0.0):
        number = random.normal(mean, deviation or shape[-1] ** -0.5, shape).astype(np.float32)
        written.add_tensor(name, gguf.quantize(number, kind), raw_dtype=kind)

    add("token_embd.weight", Type.Q8_0, tokenizer.get_vocab_size(), 64, deviation=1.0)
    add("output_norm.weight", Type.F32, 64, deviation=0.1, mean=1.0)
    for layer in range(2):
        part = f"blk.{layer}."
        add(part + "attn_norm.weight", Type.F32, 64, deviation=0.1, mean=1.0)
        add(part + "attn_q.weight", Type.Q4_0, 64, 64, deviation=0.3)
        add(part + "attn_k.weight", Type.F16, 32, 64, deviation=0.3)
        add(part + "attn_v.weight", Type.Q5_1, 32, 64)
        add(part + "attn_output.weight", Type.BF16, 64, 64)
        add(part + "ffn_norm.weight", Type.F32, 64, deviation=0.1, mean=1.0)
        add(part + "ffn_gate.weight", Type.Q4_1, 32, 64)
        add(part + "ffn_up.weight", Type.Q5_0, 32, 64)
        add(part + "ffn_down.weight", Type.Q8_0, 64, 32)
    finish(written)

    model = LlamaModel.from_pretrained(FOLDER, gguf_file="model.gguf", dtype=torch.float32)
    sequences = [
        random.integers(0, tokenizer.get_vocab_size(), length).tolist() for length in [1, 2, 17, 64, 97]
    ]
    with torch.no_grad():
        hidden = [model(torch.tensor([ids])).last_hidden_state[0, -1].numpy() for ids in sequences]
    golden = {
        "ids": np.concatenate(sequences).astype(np.int32),
        "lengths": np.array([len(ids) for ids in sequences], dtype=np.int32),
        "hidden": np.stack(hidden),
    }
    save_file(golden, FOLDER / "model.safetensors")


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    make_types()
    make_tokenizers()
    make_rope()
    make_model()
