#!/usr/bin/env python3
"""What torch, transformers and vLLM take for what benches/gpu measures of ours, on the same card.

    python3 benches/gpu/peers.py [--device cuda:0] [--rounds 7] [--model DIR]

Prints Markdown. Operations: torch's bf16 linear at the models' shapes, and causal attention of 512 tokens by its flash kernel, or by
flash-attn's for packed texts where that is installed. Whole batches: transformers' Llama with random weights of the same
sizes; vLLM's pooling of --model, where both are there. What is not installed is named and left out. `--device cpu --tiny`
tries the program where there is no card; its times mean nothing.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cost import MODELS, Model  # noqa: E402

BATCHES = ((1, 16), (1, 512), (16, 512), (64, 128), (4, 2048))
ROWS = (512, 4096)
TEXT = 512


@dataclass(frozen=True)
class Bench:
    torch: object
    device: object
    rounds: int
    repeats: int

    def wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)

    def seconds(self, work) -> float:
        """Median over rounds of one call, queued many times and waited for once; the first round warms up."""
        found = []
        for _ in range(self.rounds + 1):
            self.wait()
            start = time.perf_counter()
            for _ in range(self.repeats):
                work()
            self.wait()
            found.append((time.perf_counter() - start) / self.repeats)
        return statistics.median(found[1:])

    def random(self, *shape: int):
        return self.torch.randn(*shape, device=self.device).to(self.torch.bfloat16)


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def operations(bench: Bench, model: Model, rows: int) -> list[tuple[str, float]]:
    linear = bench.torch.nn.functional.linear
    found = []
    for name, inputs, outputs in (
        ("q, k, v product", model.hidden, model.qkv),
        ("output product", model.query, model.hidden),
        ("gate and up product", model.hidden, 2 * model.inner),
        ("down product", model.inner, model.hidden),
    ):
        x, weight = bench.random(rows, inputs), bench.random(outputs, inputs)
        found.append((f"torch: {name}", bench.seconds(lambda: linear(x, weight))))
    lengths = [min(TEXT, rows - start) for start in range(0, rows, TEXT)]
    texts, tokens = len(lengths), lengths[0]
    q = bench.random(texts, model.heads, tokens, model.head_dim)
    k, v = (bench.random(texts, model.key_value_heads, tokens, model.head_dim) for _ in range(2))
    attend = bench.torch.nn.functional.scaled_dot_product_attention
    grouped = model.heads != model.key_value_heads
    found.append(("torch: attention", bench.seconds(lambda: attend(q, k, v, is_causal=True, enable_gqa=grouped))))
    if installed("flash_attn") and bench.device.type == "cuda":
        from flash_attn import flash_attn_varlen_func

        starts = bench.torch.tensor([tokens * i for i in range(texts + 1)], dtype=bench.torch.int32, device=bench.device)
        packed = bench.random(texts * tokens, model.heads, model.head_dim)
        keys, values = (bench.random(texts * tokens, model.key_value_heads, model.head_dim) for _ in range(2))
        call = lambda: flash_attn_varlen_func(packed, keys, values, starts, starts, tokens, tokens, causal=True)  # noqa: E731
        found.append(("flash-attn: packed attention", bench.seconds(call)))
    return found


def llama(bench: Bench, model: Model):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=1024, hidden_size=model.hidden, intermediate_size=model.inner, num_hidden_layers=model.layers,
        num_attention_heads=model.heads, num_key_value_heads=model.key_value_heads, head_dim=model.head_dim,
    )
    return LlamaModel(config).to(device=bench.device, dtype=bench.torch.bfloat16).eval()


def batches(bench: Bench, model: Model, sizes) -> list[tuple[int, int, float]]:
    network = llama(bench, model)
    found = []
    with bench.torch.no_grad():
        for texts, tokens in sizes:
            ids = bench.torch.randint(0, 1024, (texts, tokens), device=bench.device)
            found.append((texts, tokens, bench.seconds(lambda: network(ids, use_cache=False))))
    return found


def vllm_tokens(folder: str, texts: int, tokens: int) -> float:
    """Tokens a second of vLLM's pooling."""
    from vllm import LLM

    engine = LLM(model=folder, runner="pooling", dtype="bfloat16", enforce_eager=False)
    prompts = [{"prompt_token_ids": [1 + (7 * text + token) % 1000 for token in range(tokens)]} for text in range(texts)]
    engine.encode(prompts[:8])
    start = time.perf_counter()
    engine.encode(prompts)
    return texts * tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", metavar="DIR", help="a folder that vLLM can load")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if not installed("torch"):
        print("torch is not installed: nothing was measured")
        return
    import torch

    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device: nothing was measured")
        return
    bench = Bench(torch, device, arguments.rounds, 1 if arguments.tiny else 20)
    models = (Model("tiny", 2, 64, 96, 4, 2, 16, 1024),) if arguments.tiny else MODELS
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"
    print(f"### torch {torch.__version__} on {name}\n")
    print("| model | rows | operation | µs |\n|---|---|---|---|")
    for model in models:
        for rows in (32,) if arguments.tiny else ROWS:
            for operation, seconds in operations(bench, model, rows):
                print(f"| {model.name} | {rows} | {operation} | {seconds * 1e6:.1f} |", flush=True)
    if not installed("flash_attn"):
        print("\nflash-attn is not installed: left out")
    if installed("transformers"):
        import transformers

        print(f"\n### transformers {transformers.__version__}, whole batches\n")
        print("| model | texts x tokens | ms | tokens/s |\n|---|---|---|---|")
        whole = Bench(torch, device, arguments.rounds, 1)
        for model in models:
            for texts, tokens, seconds in batches(whole, model, ((2, 16),) if arguments.tiny else BATCHES):
                print(f"| {model.name} | {texts} x {tokens} | {seconds * 1e3:.2f} | {texts * tokens / seconds:.0f} |", flush=True)
    else:
        print("\ntransformers is not installed: left out")
    if arguments.model and installed("vllm"):
        try:
            print(f"\nvLLM, pooling of {arguments.model}: {vllm_tokens(arguments.model, 1024, 512):.0f} tokens/s over 1,024 x 512")
        except Exception as error:  # noqa: BLE001  Its interface changes from version to version.
            print(f"\nvLLM could not pool {arguments.model}: {error}")
    else:
        print("\nvLLM was left out: it is not installed, or no --model was named")


if __name__ == "__main__":
    main()
