"""Real answers: 126 questions answered by an SFT model are its baseline; its answers to 126 others raise nothing,
its RLHF model's answers to those are flagged. Scored with SmolLM2-135M and an InfoRM head that `trainer fit`
trains first (7 minutes on two processors), unless OUTPUT/model is there.

    cargo build --release && python3 tests/responses/run.py SMOLLM2_FOLDER [OUTPUT]

The answers and preference pairs are in ../shared; without them there is nothing to do.
"""

import json
import subprocess
import sys
from pathlib import Path

from prepare import SHARED, WINDOWS

ROOT = Path(__file__).resolve().parents[2]


def main():
    if not (SHARED / "responses").exists():
        print(f"SKIPPED: no {SHARED}")
        return
    start = sys.argv[1]
    output = Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "target" / "responses").resolve()
    subprocess.run([sys.executable, Path(__file__).parent / "prepare.py", start, output], check=True)
    trainer = ROOT / "target" / "release" / "trainer"
    if not (output / "model" / "config.json").exists():
        subprocess.run([trainer, "fit", "--config", output / "fit.toml"], check=True)
    found = {}
    for name in ("healthy", "shifted"):
        command = [trainer, "monitor-replay", output / f"{name}.jsonl", "--baseline", output / "baseline.jsonl"]
        command += ["--model", output / "model", "--config", output / "server.toml", "--output", output / name]
        print(f"{name}:", flush=True)
        subprocess.run(command, check=True)
        rows = (output / name / "evaluations.jsonl").read_text().splitlines()
        found[name] = [json.loads(row) for row in rows]
        assert len(found[name]) == WINDOWS
    for row in found["healthy"]:
        assert not row["alerts"] and not row["early_stop"], row
    assert "energy" in found["shifted"][-1]["alerts"], found["shifted"][-1]


if __name__ == "__main__":
    main()
