#!/usr/bin/env python3
"""Scoring throughput: PyTorch (transformers) and our engine in turn, on the same texts.

    python3 benches/peers/score.py --model DIR --data PAIRS.jsonl.gz [--case pairs] [--rounds 5]

Needs torch, transformers, safetensors, and cargo to build the benches `score` and `linear`. DIR is a
checkpoint on a Llama-family backbone. The cases:

    pairs    the answers of the first --pairs pairs; PyTorch in the arrangements of --arrangements, ours with
             prefixes apart and shared
    groups   eight answers of 64 tokens to each of 32 prompts of 256: ours with prefixes apart and shared, and
             whether the rewards are bitwise equal
    long     one text of 2,048 tokens, PyTorch against ours
    short    one text of 16 tokens, PyTorch against ours
    budgets  ours alone: one batch of 1,024, 2,048, ... 65,536 tokens

An arrangement of PyTorch is its batch size, with an `s` where the texts are sorted by length first: 1,8,8s;
an empty list leaves PyTorch out.
In each round every arrangement has its turn; the first round warms up and is not counted. Tokens a second are
real ones: no padding, and shared tokens as often as they stand in the texts. Rates are medians of the rounds.

`of floor`: 2 x parameters of the layers x tokens that have to be computed, over the best rate of matrix
products in the same run (PyTorch's or ours, at 4,096 rows), divided by the time taken. All tokens have to be
computed but, where prefixes are shared, those that another text of the batch has.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from common import Engine, default_threads, note, print_table, rest
from products import Rates, products_of, rate
from reference import Reference

FLOOR_ROWS = 4096
BUDGETS = [1024 << i for i in range(7)]


class Run:
    """One run of the script: both engines, the texts, and all times."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.threads = arguments.threads
        torch.set_num_threads(self.threads)
        flags = ["--threads", str(self.threads)]
        self.engine = Engine("score", "--model", str(arguments.model), *flags)
        self.precisions = ["bf16", "f32"] if arguments.f32 else ["bf16"]
        self.config = json.loads((arguments.model / "config.json").read_text())
        self.references: dict[str, Reference] = {}
        self.seconds: dict[tuple, list[float]] = {}
        self.computed: dict[tuple, int] = {}
        self.last_rewards: dict[tuple, list[float]] = {}
        self.texts: list[list[int]] = []
        self.tokens = 0

    def encoded(self, pairs: int) -> list[list[int]]:
        data = str(self.arguments.data.resolve())
        return self.engine.ask(command="encode", data=data, pairs=pairs)["texts"]

    def stream(self, tokens: int) -> list[int]:
        """Real tokens: the chosen answers end to end."""
        pairs = 512
        stream = sum(self.encoded(pairs)[::2], [])
        assert len(stream) >= tokens, f"the first {pairs} pairs have {len(stream)} tokens, {tokens} are needed"
        return stream[:tokens]

    def set_texts(self, texts: list[list[int]]) -> None:
        self.texts = texts
        self.tokens = self.engine.ask(command="texts", texts=texts)["tokens"]

    def engine_turn(self, precision: str, shared: bool, repeats: int = 1, budget: int | None = None) -> float | None:
        rest()
        budget = budget or self.arguments.budget
        request = {"precision": precision, "shared": shared, "budget": budget, "repeats": repeats}
        answer = self.engine.ask(command="score", rewards=True, **request)
        if answer["seconds"] is None:
            return None
        key = ("engine", precision, shared)
        self.computed[key], self.last_rewards[key] = answer["computed"], answer["rewards"]
        return answer["seconds"]

    def torch_turn(self, precision: str, batch: int, by_length: bool, repeats: int = 1) -> float:
        rest()
        if precision not in self.references:
            self.references[precision] = Reference(self.arguments.model, precision)
        reference = self.references[precision]
        started = time.perf_counter()
        for _ in range(repeats):
            reference.rewards(self.texts, batch, by_length)
        return (time.perf_counter() - started) / repeats

    def rounds(self, turns: dict) -> None:
        """Runs every turn once a round; keeps the seconds by the turn's key."""
        for number in range(self.arguments.rounds + 1):
            for key, turn in turns.items():
                seconds = turn()
                if seconds is None:
                    continue
                name = "warm-up" if number == 0 else f"round {number} of {self.arguments.rounds}"
                note(f"{name}: {label(key)}: {seconds:.3f} s")
                if number > 0:
                    self.seconds.setdefault(key, []).append(seconds)

    def median(self, key: tuple) -> float:
        return statistics.median(self.seconds[key])

    def headline(self) -> None:
        attention = {r.attention() for r in self.references.values()}
        beside = f"; torch {torch.__version__}, attention {', '.join(attention)}" if attention else ""
        print(
            f"\ntexts {len(self.texts)}, tokens {self.tokens:,}, threads {self.threads}, rounds {self.arguments.rounds}, "
            f"token budget of the engine {self.arguments.budget:,}{beside}\n"
        )


def label(key: tuple) -> str:
    system, precision, *rest_of_key = key
    if system == "engine":
        return f"engine {precision}, prefixes {'shared' if rest_of_key[0] else 'apart'}"
    if system == "torch":
        batch, by_length = rest_of_key
        how = "one by one" if batch == 1 else f"batches of {batch}, {'sorted' if by_length else 'in order'}"
        return f"torch {precision}, {how}"
    return f"{system} {precision} {' '.join(map(str, rest_of_key))}".strip()


def arrangements(text: str) -> list[tuple[int, bool]]:
    names = filter(None, text.split(","))
    return [(int(name.removesuffix("s")), name.endswith("s")) for name in names]


def pairs(run: Run) -> None:
    run.set_texts(run.encoded(run.arguments.pairs))
    linear = Engine("linear", "--threads", str(run.threads))
    products = products_of(run.config)
    rates = {p: [Rates(linear, product, FLOOR_ROWS, p) for product in products] for p in run.precisions}
    flop_per_token = run.config["num_hidden_layers"] * sum(product.flop(1) for product in products)

    def products_turn(precision: str) -> float:
        started = time.perf_counter()
        for rates_of_product in rates[precision]:
            rates_of_product.round()
        return time.perf_counter() - started

    turns: dict = {}
    for precision in run.precisions:
        turns["products", precision] = lambda p=precision: products_turn(p)
        for shared in (False, True):
            turns["engine", precision, shared] = lambda p=precision, s=shared: run.engine_turn(p, s)
        for batch, by_length in run.arguments.arrangements:
            turns["torch", precision, batch, by_length] = lambda p=precision, b=batch, s=by_length: run.torch_turn(p, b, s)
    run.rounds(turns)

    run.headline()
    table = []
    for precision in run.precisions:
        best_rate = max(rate(rates[precision], side) for side in ("engine", "torch"))
        mine = [key for key in run.seconds if key[1] == precision and key[0] != "products"]
        best_torch = min((run.median(key) for key in mine if key[0] == "torch"), default=float("nan"))
        for key in sorted(mine, key=lambda key: key[0] == "engine"):
            seconds = run.median(key)
            floor = flop_per_token * run.computed.get(key, run.tokens) / best_rate
            table.append([label(key), round(run.tokens / seconds), best_torch / seconds, floor / seconds])
    print_table(["", "tokens/s", "of torch's best", "of floor"], table)
    print()
    for precision in run.precisions:
        ours, theirs = (rate(rates[precision], side) / 1e9 for side in ("engine", "torch"))
        floor = max(ours, theirs) * 1e9 / flop_per_token
        print(
            f"Products in {precision} at {FLOOR_ROWS:,} rows: engine {ours:.0f}, torch {theirs:.0f} GFLOP/s; "
            f"{flop_per_token / 1e6:.0f} MFLOP a token: {floor:,.0f} computed tokens/s at the best."
        )
    for key, computed in run.computed.items():
        print(f"{label(key)}: {run.tokens / computed:.2f} real tokens per computed one.")
    for key, sixteen in ((key, ("torch", key[1], 16, False)) for key in run.computed):
        if sixteen in run.seconds:
            print(f"{label(key)}: {run.median(sixteen) / run.median(key):.2f} times {label(sixteen)}.")


def groups(run: Run) -> None:
    prompts, answers, prompt_tokens, answer_tokens = 32, 8, 256, 64
    stream = run.stream(prompts * (prompt_tokens + answers * answer_tokens))
    take = iter(stream)
    texts = []
    for _ in range(prompts):
        prompt = [next(take) for _ in range(prompt_tokens)]
        texts += [prompt + [next(take) for _ in range(answer_tokens)] for _ in range(answers)]
    run.set_texts(texts)
    keys = [("engine", p, shared) for p in run.precisions for shared in (False, True)]
    run.rounds({key: lambda key=key: run.engine_turn(key[1], key[2]) for key in keys})
    run.headline()
    table = []
    for key in keys:
        if key in run.seconds:
            apart = ("engine", key[1], False)
            equal = run.last_rewards[key] == run.last_rewards[apart]
            rewards = "" if key == apart else "bitwise equal" if equal else "DIFFERENT"
            ratio = run.median(apart) / run.median(key)
            table.append([label(key), round(run.tokens / run.median(key)), run.computed[key], ratio, rewards])
    print_table(["", "tokens/s", "computed", "of apart", "rewards"], table)


def single(run: Run, tokens: int, repeats: int) -> None:
    run.set_texts([run.stream(tokens)])
    turns: dict = {}
    for precision in run.precisions:
        turns["torch", precision, 1, False] = lambda p=precision: run.torch_turn(p, 1, False, repeats)
        turns["engine", precision, False] = lambda p=precision: run.engine_turn(p, False, repeats)
    run.rounds(turns)
    run.headline()
    table = []
    for key in run.seconds:
        seconds = run.median(key)
        name = f"{key[0]} {key[1]}"
        table.append([name, seconds * 1e3, round(run.tokens / seconds), run.median(("torch", key[1], 1, False)) / seconds])
    print_table(["", "ms", "tokens/s", "torch's time / this"], table)


def budgets(run: Run) -> None:
    texts = run.encoded(1024)
    batches: dict[int, list[list[int]]] = {}
    for budget in BUDGETS:
        batches[budget], total = [], 0
        for text in texts:
            if total + len(text) > budget:
                break
            batches[budget].append(text)
            total += len(text)
        else:
            raise SystemExit(f"the first 1,024 pairs do not fill a batch of {budget} tokens")
    tokens = {}

    def turn(budget: int, precision: str) -> float | None:
        run.set_texts(batches[budget])
        tokens[budget] = run.tokens
        return run.engine_turn(precision, False, budget=budget)

    turns = {("batch of", p, b): lambda b=b, p=p: turn(b, p) for p in run.precisions for b in BUDGETS}
    run.rounds(turns)
    print(f"\nthreads {run.threads}, rounds {run.arguments.rounds}, prefixes apart, one batch each\n")
    table = []
    for key in run.seconds:
        seconds, count = run.median(key), tokens[key[2]]
        first = ("batch of", key[1], BUDGETS[0])
        relative = (seconds / count) / (run.median(first) / tokens[BUDGETS[0]])
        table.append([key[1], key[2], len(batches[key[2]]), count, seconds, round(count / seconds), relative])
    names = ["", "budget", "texts", "tokens", "seconds", "tokens/s", "time a token / that at 1,024"]
    print_table(names, table)


def main() -> None:
    cases = {
        "pairs": pairs,
        "groups": groups,
        "long": lambda run: single(run, 2048, 1),
        "short": lambda run: single(run, 16, 20),
        "budgets": budgets,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs, JSONL")
    parser.add_argument("--case", choices=cases, default="pairs")
    parser.add_argument("--pairs", type=int, default=128, help="of the case `pairs`")
    parser.add_argument("--arrangements", type=arrangements, default=arrangements("1,8,8s,16,16s,32,32s"))
    parser.add_argument("--f32", action="store_true", help="f32 as well as bf16, in both")
    parser.add_argument("--rounds", type=int, default=5, help="that count; one more warms up")
    parser.add_argument("--budget", type=int, default=8192, help="tokens of the engine's batches")
    parser.add_argument("--threads", type=int, default=default_threads())
    arguments = parser.parse_args()
    cases[arguments.case](Run(arguments))


if __name__ == "__main__":
    main()
