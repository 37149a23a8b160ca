"""What the scripts share: the engine's benchmark programs as child processes, and tables."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def cargo(*arguments: str) -> dict[str, str]:
    """Builds targets; answers their executables by name."""
    command = [os.environ.get("CARGO", "cargo"), *arguments, "--locked", "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        sys.exit(f"{' '.join(command)} failed")
    messages = map(json.loads, built.stdout.splitlines())
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


class Engine:
    """A benchmark program that stays and answers a JSON line per request, so that turns interleave finely."""

    def __init__(self, bench: str, *flags: str):
        program = cargo("bench", "--bench", bench, "--no-run")[bench]
        command = [program, "--serve-stdin", *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request) -> dict:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            sys.exit("the engine ended; its message stands above")
        answer = json.loads(line)
        if "error" in answer:
            sys.exit(f"the engine answered: {answer['error']}")
        return answer


def default_threads() -> int:
    return len(os.sched_getaffinity(0))


def rest() -> None:
    """Between turns: OpenMP's threads spin for a moment after their work and would take the other's time."""
    time.sleep(0.02)


def note(*words) -> None:
    """Progress, beside the table."""
    print(*words, file=sys.stderr, flush=True)


def print_table(header: list[str], rows: list[list]) -> None:
    """Markdown; numbers to the right."""
    cells = [[f"{c:,.2f}" if isinstance(c, float) else f"{c:,}" if isinstance(c, int) else c for c in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    right = [any(not isinstance(row[i], str) for row in rows) for i in range(len(header))]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)) + " |"

    print(line(header))
    print("|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right)) + "|")
    for row in cells:
        print(line(row))
    sys.stdout.flush()
