"""Small vocabularies as GGUF files of Qwen, Phi-3 and Gemma have them, and the tokenizers that they came from.

Made with gguf 0.19.0, sentencepiece 0.2.3, tokenizers 0.23.3 and transformers 5.24.0; `gguf_families.py` writes them. Types,
scores and settings are those that llama.cpp's convert_hf_to_gguf.py gives each architecture.
"""

import io
import json

import sentencepiece
from gguf import TokenType
from gguf_files import CORPUS, TEXTS, byte_level, with_bos
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, models, normalizers, trainers
from transformers import GemmaTokenizer, Qwen2Tokenizer
from transformers.tokenization_utils_base import generate_merges

SPACE = "\u2581"
# Rows of the embedding table that no token has.
PADDING = 3

TEMPLATES = {
    "qwen": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}",
    "phi3": "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}{{ eos_token }}",
    "gemma": "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\\n' + message['content'] + '<end_of_turn>\\n' }}{% endfor %}",
}

SAMPLES = TEXTS + [
    " one space",
    "   three spaces  and two, 2024 or 7",
    "\n\n  line feeds\n      and spaces\n\n\n",
    "\tone\t\ttwo \t three\t\t\t",
    "<|im_start|>user\n Is it 12?<|im_end|>\n<|im_start|>assistant\nIt is.",
    "<s><|user|>\n Is it 12?<|end|>\n<|assistant|>\nIt is.<|end|>\n\n</s>  Really. <|endoftext|> No.",
    "<bos><start_of_turn>user\n Is it 12?<end_of_turn>\n<start_of_turn>model\nIt is.<end_of_turn>\n",
]


def pad(written, tokens, types, scores=None):
    tokens += [f"[PAD{len(tokens) + number}]" for number in range(PADDING)]
    types += [TokenType.UNUSED] * PADDING
    written.add_token_list(tokens)
    if scores is not None:
        written.add_token_scores(scores + [-1000.0] * PADDING)
    written.add_token_types(types)
    return len(tokens)


def qwen(written):
    # Merges cross the borders of words, so that splitting is seen in the ids.
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = byte_level(False)
    alphabet = byte_level(False).alphabet()
    trained.train_from_iterator(
        CORPUS * 2, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(model["vocab"], [tuple(merge) for merge in model["merges"]])
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])

    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    kinds = {**dict.fromkeys(control, TokenType.CONTROL), "<tool_call>": TokenType.USER_DEFINED}
    written.add_tokenizer_model("gpt2")
    written.add_tokenizer_pre("qwen2")
    size = pad(written, tokens, [kinds.get(token, TokenType.NORMAL) for token in tokens])
    written.add_token_merges([" ".join(merge) for merge in model["merges"]])
    written.add_eos_token_id(tokens.index("<|im_end|>"))
    written.add_pad_token_id(tokens.index("<|endoftext|>"))
    written.add_bos_token_id(tokens.index("<|endoftext|>"))
    written.add_add_bos_token(False)
    written.add_chat_template(TEMPLATES["qwen"])
    return size, [tokenizer.encode(text, add_special_tokens=False) for text in SAMPLES]


def train(**settings):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n") if line]),
        model_writer=model,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
        **settings,
    )
    return sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())


def merges(vocabulary, pieces):
    """As transformers makes them of a SentencePiece model."""
    return generate_merges(vocabulary, {piece.piece: piece.score for piece in pieces})


def compare(proto, ids, added):
    """Texts without added tokens have SentencePiece's ids, but for what BOS adds."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    compared = 0
    for text, found in zip(SAMPLES, ids):
        if not any(token in text for token in added):
            assert found == processor.encode(text), (text, found, processor.encode(text))
            compared += 1
    assert compared > 20


def phi3(written):
    proto = train(vocab_size=400)
    vocabulary = {piece.piece: id for id, piece in enumerate(proto.pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges(vocabulary, proto.pieces), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ["<unk>", "<s>"]])
    tokenizer.add_tokens([AddedToken("</s>", normalized=False, rstrip=True)])
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    turns = ["<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, rstrip=True) for token in turns])

    ids = [tokenizer.encode(text).ids for text in SAMPLES]
    compare(proto, ids, ["<|", "<s>", "</s>"])
    added = tokenizer.get_added_tokens_decoder()
    tokens, types, scores = [], [], []
    for id in range(tokenizer.get_vocab_size()):
        tokens.append(tokenizer.id_to_token(id))
        kind = TokenType.BYTE if tokens[-1].startswith("<0x") else TokenType.NORMAL
        if id in added:
            kind = TokenType.CONTROL if added[id].special else TokenType.USER_DEFINED
        types.append(kind)
        scores.append(-1000.0 if id in added else proto.pieces[id].score)
    written.add_tokenizer_model("llama")
    written.add_tokenizer_pre("default")
    size = pad(written, tokens, types, scores)
    written.add_bos_token_id(tokens.index("<s>"))
    written.add_eos_token_id(tokens.index("<|endoftext|>"))
    written.add_unk_token_id(tokens.index("<unk>"))
    written.add_pad_token_id(tokens.index("<|endoftext|>"))
    written.add_add_bos_token(True)
    written.add_add_eos_token(False)
    written.add_chat_template(TEMPLATES["phi3"])
    return size, [with_bos(row, [tokens.index("<s>")]) for row in ids]


def gemma(written):
    feeds = ["\n" * count for count in range(1, 5)]
    spaces = [SPACE * count for count in range(2, 9)]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    proto = train(
        vocab_size=430,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=["<mask>", *turns, *feeds, *spaces],
    )
    # Gemma has them, and no piece of one tab.
    least = min(piece.score for piece in proto.pieces)
    for count in (2, 3):
        proto.pieces.add(piece="\t" * count, score=least - count, type=1)
    pieces = proto.pieces
    vocabulary = {piece.piece: id for id, piece in enumerate(pieces)}
    assert "\t" not in vocabulary
    vocabulary["\t"] = vocabulary["<0x09>"]
    tokenizer = GemmaTokenizer(vocabulary, merges(vocabulary, pieces))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in turns])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in feeds + spaces])

    ids = [tokenizer.encode(text, add_special_tokens=False) for text in SAMPLES]
    compare(proto, ids, ["<bos>"])
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *turns]
    tokens, types, scores = [], [], []
    for piece in pieces:
        is_own = piece.piece in feeds + spaces
        is_added = is_own or piece.piece in control
        kind = TokenType.BYTE if piece.type == 6 else TokenType.NORMAL
        if is_added:
            kind = TokenType.USER_DEFINED if is_own else TokenType.CONTROL
        tokens.append(piece.piece.replace(SPACE, " ") if is_own else piece.piece)
        types.append(kind)
        scores.append(-1000.0 if is_added else piece.score)
    written.add_tokenizer_model("llama")
    written.add_tokenizer_pre("default")
    size = pad(written, tokens, types, scores)
    written.add_bos_token_id(2)
    written.add_eos_token_id(1)
    written.add_unk_token_id(3)
    written.add_pad_token_id(0)
    written.add_add_bos_token(True)
    written.add_add_eos_token(False)
    written.add_add_space_prefix(False)
    written.add_chat_template(TEMPLATES["gemma"])
    return size, [with_bos(row, [2]) for row in ids]


VOCABULARIES = {"qwen2": qwen, "qwen3": qwen, "phi3": phi3, "gemma2": gemma, "gemma3_text": gemma}
