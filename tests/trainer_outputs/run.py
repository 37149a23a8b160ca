"""What a training writes, read by those who are to read it: events by TensorBoard, plots by an XML parser.

    pip install -r tests/trainer_outputs/requirements.txt
    cargo build --release
    python tests/trainer_outputs/run.py

A training is killed when it is beyond its last saved state; its events are read, then those of the whole training.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tensorboard.backend.event_processing import event_accumulator

ROOT = Path(__file__).parents[2]
TRAINER = ROOT / "target/release/trainer"
SAVED_EVERY = 10
SETTINGS = """
output = {output}
threads = 2
[start.scratch]
vocab_size = 300
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 128
[head]
kind = {kind}
latent_dim = 4
[data]
files = [{data}]
train_pairs = 160
max_tokens = 128
[loss]
beta = 0.02
[optimiser]
learning_rate = 1e-2
[schedule]
epochs = {epochs}
pairs_per_step = 8
[evaluation]
every_steps = 7
pairs = 40
[progress]
every_steps = {saved_every}
"""
TRAINING = {
    f"train/{key}": key
    for key in (
        "loss",
        "preference",
        "kl",
        "accuracy",
        "margin",
        "active_dimensions",
        "learning_rate",
        "gradient_norm",
    )
}
HELD_OUT = {"held_out/accuracy": "accuracy", "held_out/margin": "margin_mean"}


def pair(number):
    right, wrong = (f"{number} is {'odd' if (number + shift) % 2 else 'even'}." for shift in (0, 1))
    return {"prompt": f"Is {number} odd?", "chosen": right, "rejected": wrong}


def settings(folder, name, **values):
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair(number)) + "\n" for number in range(200)))
    file = folder / f"{name}.toml"
    output = folder / name
    values = {"output": str(output), "data": str(data), **values}
    values = {key: json.dumps(value) for key, value in values.items()}
    file.write_text(SETTINGS.format(saved_every=SAVED_EVERY, **values))
    return output, [TRAINER, "fit", "--config", file]


def read_log(folder):
    records = []
    for line in (folder / "log.jsonl").read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # The last line of a killed run.
    return records


def single(number):
    return struct.unpack("f", struct.pack("f", number))[0]


def compare(folder, log):
    """The events are the log's records, each once, in their order."""
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    steps = [(record["step"], record) for record in log if "evaluation" not in record]
    evaluations = [(record["step"], record["evaluation"]) for record in log if "evaluation" in record]
    tags = {tag: (steps, key) for tag, key in TRAINING.items() if key in steps[0][1]}
    tags |= {tag: (evaluations, key) for tag, key in HELD_OUT.items() if evaluations}
    assert sorted(events.Tags()["scalars"]) == sorted(tags), events.Tags()["scalars"]
    times = []
    for tag, (records, key) in tags.items():
        found = events.Scalars(tag)
        expected = [(step, single(record[key])) for step, record in records]
        assert [(event.step, event.value) for event in found] == expected, tag
        assert all(one.wall_time <= next.wall_time for one, next in zip(found, found[1:])), tag
        times += [event.wall_time for event in found]
    assert all(0 <= time.time() - one < 3600 for one in times)
    return len(times)


def read_plots(folder, expected):
    plots = sorted((folder / "plots").iterdir())
    assert [plot.name for plot in plots] == [f"{name}.svg" for name in sorted(expected)], plots
    for plot in plots:
        svg = ElementTree.parse(plot).getroot()
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        title, description = (svg.find(f"{{http://www.w3.org/2000/svg}}{tag}").text for tag in ("title", "desc"))
        assert folder.name in title and "steps." in description, (title, description)


def killed_and_resumed(folder):
    output, command = settings(folder, "killed", kind="inform", epochs=6)
    progress = folder / "killed.progress"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ((progress / "state.safetensors").exists() and len(read_log(progress)) > 2 * SAVED_EVERY + 4):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Each record is followed by its event.
    log = read_log(progress)
    events = event_accumulator.EventAccumulator(str(progress / "tensorboard")).Reload()
    count = sum(len(events.Scalars(tag)) for tag in ("train/loss", "held_out/accuracy"))
    assert len(log) - count in (0, 1), (len(log), count)
    print(f"killed: {len(log)} records, {compare(progress, log[:count])} scalars")

    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "resumed after step" in done.stderr, done.stderr
    log = read_log(output)
    assert len(os.listdir(output / "tensorboard")) == 1
    print(f"resumed: {len(log)} records, {compare(output, log)} scalars")
    read_plots(output, ["loss", "accuracy", "kl", "margin", "active_dimensions"])


def standard_head(folder):
    output, command = settings(folder, "standard", kind="standard", epochs=1)
    subprocess.run(command, check=True, capture_output=True)
    log = read_log(output)
    print(f"standard head: {len(log)} records, {compare(output, log)} scalars")
    read_plots(output, ["loss", "accuracy", "margin"])


with tempfile.TemporaryDirectory() as temporary:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
    killed_and_resumed(folder)
    standard_head(folder)
print("trainer_outputs: passed")
