#!/usr/bin/env python3
"""Memory and start of the real server, with batches as large as its token budget.

    cargo build --release
    python3 benches/memory.py --model DIR

Starts `inform-server` --starts times and takes the seconds until `GET /ready` answers. Then posts texts of
random tokens, which share nothing, so that every batch is full: short texts, long ones, and texts as long as
the model allows. Prints the peak of resident memory (VmHWM of /proc, mapped files included) after each, and
compares it with 1.5 times the weights in bf16 plus 300 MB. Linux only.
"""

import argparse
import atexit
import json
import random
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READY_TIMEOUT = 120
ANSWER_TIMEOUT = 600


def parameters(folder: Path) -> int:
    """Elements of all tensors; safetensors begins with the header's length and the header as JSON."""
    count = 0
    for file in folder.glob("model*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for extent in tensor["shape"]:
                    size *= extent
                count += size
    return count


class Server:
    def __init__(self, command: list[str]):
        started = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)
        self.url = None
        log = []
        for line in self.process.stderr:
            log.append(line)
            if "listening on " in line:
                self.url = line.split("listening on ")[1].split()[0]
                break
        if self.url is None:
            sys.exit("the server did not start:\n" + "".join(log))
        # A pipe that nobody reads would stop the server once it is full.
        threading.Thread(target=lambda: self.process.stderr.read(), daemon=True).start()
        while True:
            try:
                self.get("/ready")
                break
            except OSError:
                if time.perf_counter() - started > READY_TIMEOUT:
                    sys.exit("the server does not become ready")
                time.sleep(0.005)
        self.seconds_to_ready = time.perf_counter() - started

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=ANSWER_TIMEOUT) as answer:
            return answer.read().decode()

    def score(self, texts: list[list[int]]) -> None:
        body = {"inputs": [{"input_ids": ids} for ids in texts], "role": "eval", "return_latents": False}
        body["deadline_ms"] = ANSWER_TIMEOUT * 1000
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.url + "/reward", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT) as answer:
            rewards = json.loads(answer.read())["rewards"]
        if len(rewards) != len(texts) or None in rewards:
            sys.exit("not every text has a reward")

    def metric(self, name: str) -> float:
        lines = self.get("/metrics").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))

    def megabytes(self, field: str) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
        sys.exit(f"no {field} in /proc")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(ANSWER_TIMEOUT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--server", type=Path, default=ROOT / "target/release/inform-server")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--budget", type=int, default=16384)
    parser.add_argument("--batches", type=int, default=2, help="of each length of text")
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    command = [str(arguments.server), "--model", str(arguments.model), "--dtype", arguments.dtype, "--port", "0"]
    command += ["--set", f"engine.token_budget={arguments.budget}"]
    command += ["--set", f"limits.max_deadline_ms={ANSWER_TIMEOUT * 1000}"]

    seconds = []
    for start in range(arguments.starts):
        server = Server(command)
        seconds.append(server.seconds_to_ready)
        if start + 1 < arguments.starts:
            server.stop()
    rows = [("ready", server.megabytes("VmHWM"), server.megabytes("RssAnon"), server.megabytes("RssFile"))]
    longest = min(json.loads(server.get("/info"))["max_tokens"], arguments.budget)
    vocabulary = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
    draw = random.Random(0)
    for length in dict.fromkeys(min(length, longest) for length in (150, 2048, longest)):
        per_batch = arguments.budget // length
        # The server appends the token at which the reward is read.
        texts = [draw.choices(range(3, vocabulary), k=length - 1) for _ in range(per_batch * arguments.batches)]
        before = server.metric("inform_batch_tokens_sum"), server.metric("inform_batch_tokens_count")
        server.score(texts)
        tokens = server.metric("inform_batch_tokens_sum") - before[0]
        batches = server.metric("inform_batch_tokens_count") - before[1]
        name = f"{batches:.0f} batches of {tokens / batches:,.0f} tokens in texts of {length:,}"
        rows.append((name, server.megabytes("VmHWM"), server.megabytes("RssAnon"), server.megabytes("RssFile")))
        print(f"{name}: scored", file=sys.stderr, flush=True)
    server.stop()

    weights = 2 * parameters(arguments.model) / 1e6
    limit = 1.5 * weights + 300
    peak = rows[-1][1]
    print("\n| after | peak, MB | then anonymous, MB | then files, MB |\n|---|---:|---:|---:|")
    for name, *sizes in rows:
        print("| " + " | ".join([name, *(f"{size:,.0f}" for size in sizes)]) + " |")
    print(f"\nstart to ready: median {statistics.median(seconds):.2f} s of {', '.join(f'{s:.2f}' for s in seconds)}")
    print(f"weights in bf16: {weights:,.0f} MB; 1.5 times that and 300 MB: {limit:,.0f} MB")
    print(f"peak resident: {peak:,.0f} MB: {'within' if peak <= limit else 'ABOVE'} that")


if __name__ == "__main__":
    main()
