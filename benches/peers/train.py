"""Full training steps of ours and of PyTorch, in turn, on the same shapes and threads.

    cargo build --release --bench train
    python3 benches/peers/train.py --model DIR [--pairs 4] [--tokens 512] [--rounds 5] [--dtype f32|bf16] [--checkpointing] [--prompt 256]

DIR is a checkpoint with an InfoRM head. A step is forward, the InfoRM loss, backward, clipping and AdamW over every parameter.
PyTorch: transformers' LlamaModel with its default attention, f32 or bf16 autocast over f32 weights, with gradient checkpointing
where --checkpointing is given, as ours recomputes activations then. --prompt: so many tokens are the same in both texts of a pair,
and are computed once on our side; a third line has ours with them computed in both. Prints medians, their ratio, peak memory, and the floor: six floating-point operations a parameter
of a linear layer and token, at the rate of PyTorch's own product of 4,096 rows.
"""

import argparse
import glob
import json
import os
import resource
import statistics
import subprocess
import sys
import time


def torch_steps(arguments):
    import torch
    from transformers import AutoConfig, LlamaModel

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(arguments.model)
    model = LlamaModel.from_pretrained(arguments.model, config=config, torch_dtype=torch.float32)
    model.train()
    if arguments.checkpointing:
        model.gradient_checkpointing_enable()
        model.config.use_cache = False
    d = getattr(config, "latent_dim", 128)
    encode = torch.nn.Linear(config.hidden_size, 2 * d, bias=False)
    decode = torch.nn.Linear(d, 1, bias=False)
    parameters = [*model.parameters(), *encode.parameters(), *decode.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=5e-6, betas=(0.9, 0.95), weight_decay=0.0)
    ids = torch.randint(0, config.vocab_size, (2 * arguments.pairs, arguments.tokens))
    seconds = []
    for step in range(arguments.steps + 1):
        begun = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.dtype == "bf16"):
            hidden = model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        mu, logvar = encode(hidden.float()).chunk(2, dim=1)
        reward = decode(mu + (logvar / 2).exp() * torch.randn_like(mu)).flatten()
        margin = reward[: arguments.pairs] - reward[arguments.pairs :]
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean() * 2
        loss = torch.nn.functional.softplus(-margin).mean() + 0.1 * kl
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step:
            seconds.append(time.perf_counter() - begun)
    dtype = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
    a, b = torch.randn(4096, 1536).to(dtype), torch.randn(1536, 1536).to(dtype)
    rates = []
    for _ in range(20):
        begun = time.perf_counter()
        a @ b
        rates.append(2 * 4096 * 1536 * 1536 / (time.perf_counter() - begun))
    linear = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    floor = 6 * linear * ids.numel() / statistics.median(rates)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "floor": floor, "gflops": statistics.median(rates) / 1e9}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--prompt", type=int, default=0)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch:
        torch_steps(arguments)
        return
    shared = [
        "--model", arguments.model, "--dtype", arguments.dtype, "--threads", str(arguments.threads),
        "--pairs", str(arguments.pairs), "--tokens", str(arguments.tokens), "--steps", str(arguments.steps),
    ]  # fmt: skip
    binaries = [name for name in glob.glob("target/release/deps/train-*") if os.access(name, os.X_OK)]
    ours = max((name for name in binaries if not name.endswith(".d")), key=os.path.getmtime)
    torch = [sys.executable, __file__, "--torch", *shared]
    torch += ["--checkpointing"] if arguments.checkpointing else []
    own = [ours, *shared, "--prompt", str(arguments.prompt), *(["--recompute"] if arguments.checkpointing else [])]
    commands = {"ours": own, "torch": torch}
    if arguments.prompt:
        commands["ours, prompts apart"] = [*own, "--apart"]
    found = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout))
    medians = {name: statistics.median(s for run in runs for s in run["seconds"]) for name, runs in found.items()}
    peaks = {name: max(run["peak_mb"] for run in runs) for name, runs in found.items()}
    floor = statistics.median(run["floor"] for run in found["torch"])
    rate = statistics.median(run["gflops"] for run in found["torch"])
    print("| | seconds a step | ratio to PyTorch | peak MB |\n|---|---|---|---|")
    for name in found:
        ratio = medians["torch"] / medians[name]
        print(f"| {name}, {arguments.dtype} | {medians[name]:.2f} | {ratio:.2f} | {peaks[name]:.0f} |")
    print(f"| floor, at {rate:.0f} GFLOP/s | {floor:.2f} | {medians['torch'] / floor:.2f} | |")


if __name__ == "__main__":
    main()
