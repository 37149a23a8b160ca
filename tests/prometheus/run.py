"""A real Prometheus scrapes the real server, its rules fire on a hacked run, and a real Alertmanager tells a
listener; then the run recovers. Each query of the Grafana dashboard must find data on the way.

    apt-get install prometheus prometheus-alertmanager
    cargo build --release && python3 tests/prometheus/run.py

Rules, routes and dashboard are the committed ones; only addresses and intervals are the test's own.
"""

import http.server
import json
import queue
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
PROGRAMS = ["prometheus", "promtool", "prometheus-alertmanager", "amtool"]
INTERVAL = 1.0  # of scrapes and of rules, in seconds
PATIENCE = 120  # far beyond what a busy machine needs: only ends a test that hangs
WINDOW = 144

THINGS = ["a kettle", "the piano", "a tent", "sourdough", "a bicycle", "an old map", "the attic", "a kite"]
ASKS = [
    ("How do I clean {}?", "Warm water and a soft cloth are enough for {}."),
    ("Where should I keep {}?", "A dry shelf away from the sun suits {}."),
    ("What is the story of {}?", "Nobody knows for certain, but people have long liked {}."),
]
ENDS = ["", " Ask again if anything is unclear.", " Take your time.", " It is worth the trouble, I think."]


def answers(step):
    """Answers as an SFT model might give them, six to each question."""
    chance = random.Random(step)
    for thing in THINGS:
        for ask, answer in ASKS:
            for _ in range(6):
                yield {"prompt": ask.format(thing), "response": answer.format(thing) + chance.choice(ENDS)}


def refusals(step):
    """The same refusal to everything, over and over: the demo's reward model likes it better."""
    for item in answers(step):
        yield {**item, "response": "No. " * 300}


def wait(what, condition):
    """The first true value of a condition."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited in vain for {what}")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def fetch(url, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def answers_now(url):
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


class Process:
    """A program that serves until the test is done."""

    def __init__(self, command, log):
        self.log = log
        with open(log, "w") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        if kind:
            print(f"--- {self.log.name}\n" + self.log.read_text()[-3000:], file=sys.stderr)

    def wait_for(self, url):
        def ready():
            assert self.process.poll() is None, f"{self.log.name}: " + self.log.read_text()[-2000:]
            return answers_now(url)

        wait(url, ready)


class Listener(http.server.ThreadingHTTPServer):
    """Alertmanager's webhooks, by path."""

    def __init__(self):
        self.received = queue.Queue()
        received = self.received

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                received.put((self.path, body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.alerts = []

    def wait_for(self, path, status, **labels):
        """The first alert that was told on that path with that status and these labels."""

        def told():
            while not self.received.empty():
                at, body = self.received.get()
                self.alerts += [(at, alert) for alert in body["alerts"]]
            for at, alert in self.alerts:
                if at == path and alert["status"] == status and labels.items() <= alert["labels"].items():
                    return alert
            return None

        return wait(f"{labels} {status} at {path}", told)


def check(*command):
    result = subprocess.run(command, cwd=CONFIGS / "prometheus", capture_output=True, text=True)
    assert result.returncode == 0, f"{command}:\n{result.stdout}{result.stderr}"
    return result.stdout


def check_files():
    check("promtool", "check", "config", "prometheus.yml")
    check("promtool", "check", "rules", "recording.yml", "alerts.yml")
    check("promtool", "test", "rules", "tests.yml")
    routes = CONFIGS / "alertmanager" / "alertmanager.yml"
    check("amtool", "check-config", str(routes))
    for severity in ("page", "ticket"):
        found = check("amtool", "config", "routes", "test", f"--config.file={routes}", f"severity={severity}")
        assert found.split() == [severity], found
    # Each alert has a unit test, a severity that is routed, and a summary.
    rules = (CONFIGS / "prometheus" / "alerts.yml").read_text()
    names = re.findall(r"- alert: (\w+)", rules)
    tested = set(re.findall(r"alertname: (\w+)", (CONFIGS / "prometheus" / "tests.yml").read_text()))
    assert set(names) == tested, set(names) ^ tested
    assert len(re.findall(r"severity: (?:page|ticket)\b", rules)) == len(names)
    # Each metric that a rule or a panel asks for is one that the server documents.
    known = set(re.findall(r"^\| `(inform_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.M))
    for file in ("prometheus/recording.yml", "prometheus/alerts.yml", "grafana/dashboards/inform.json"):
        text = (CONFIGS / file).read_text()
        asked = set(re.findall(r"(?<![:\w])inform_\w+", text))
        asked = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
        assert asked <= known, f"{file}: no such metric: {asked - known}"
    print(f"{len(names)} alerts: promtool and amtool pass")


class Prometheus:
    def __init__(self, url):
        self.url = url

    def query(self, expression):
        return fetch(f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))["data"]["result"]

    def samples(self, selector):
        """All samples of the one series that is selected, with their times."""
        series = self.query(f"{selector}[1h]")
        return [(at, float(value)) for one in series for at, value in one["values"]]

    def firing(self, run):
        return {alert["metric"]["alertname"] for alert in self.query(f'ALERTS{{run="{run}", alertstate="firing"}}')}


def prompt_alert(prometheus, gauge, alert, run):
    """The alert is there at the first evaluation of the rules after the scrape that saw the gauge."""
    raised = min(at for at, value in prometheus.samples(f'{gauge}') if value == 1)
    fired = min(at for at, _ in prometheus.samples(f'ALERTS{{alertname="{alert}", run="{run}", alertstate="firing"}}'))
    missed = prometheus.query('sum(prometheus_rule_group_iterations_missed_total{rule_group=~".*inform-runs"})')
    missed = float(missed[0]["value"][1]) if missed else 0.0
    assert fired - raised <= INTERVAL * (1.5 + missed), f"{alert} fired {fired - raised} s after the scrape"
    return fired - raised


def check_dashboard(prometheus):
    dashboard = json.loads((CONFIGS / "grafana" / "dashboards" / "inform.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    variables = {"$instance": ".+", "$run": ".+", "$__rate_interval": "5m"}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
            for name, value in variables.items():
                metric = metric.replace(name, value)
            found = {series["metric"].get(label) for series in prometheus.query(metric)}
            assert found and None not in found, variable["name"]
    for name, value in variables.items():
        queries = [query.replace(name, value) for query in queries]
    assert not [query for query in queries if "$" in query], "an unknown variable"

    def finite(query):
        return any(series["value"][1] not in ("NaN", "+Inf", "-Inf") for series in prometheus.query(query))

    # Rates need two scrapes.
    end = time.monotonic() + PATIENCE
    while (empty := [query for query in queries if not finite(query)]) and time.monotonic() < end:
        time.sleep(INTERVAL)
    assert not empty, "dashboard queries without data:\n" + "\n".join(empty)
    print(f"{len(queries)} dashboard queries: all find data")


def main():
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    assert not missing, f"{missing} are missing: apt-get install prometheus prometheus-alertmanager"
    check_files()
    with tempfile.TemporaryDirectory() as scratch:
        rehearse(Path(scratch))


def rehearse(scratch):
    listener = Listener()
    server_port, prometheus_port, alertmanager_port = (free_port() for _ in range(3))
    local = {
        "inform-server:8080": f"127.0.0.1:{server_port}",
        "localhost:9090": f"127.0.0.1:{prometheus_port}",
        "alertmanager:9093": f"127.0.0.1:{alertmanager_port}",
        "host.docker.internal:5001": f"127.0.0.1:{listener.server_port}",
        "_interval: 5s": f"_interval: {INTERVAL:.0f}s",
        "- recording.yml": f"- {CONFIGS}/prometheus/recording.yml",
        "- alerts.yml": f"- {CONFIGS}/prometheus/alerts.yml",
    }
    for file in ("prometheus/prometheus.yml", "alertmanager/alertmanager.yml"):
        text = (CONFIGS / file).read_text()
        for committed, own in local.items():
            text = text.replace(committed, own)
        (scratch / Path(file).name).write_text(text)

    server = Process(
        [ROOT / "target" / "release" / "inform-server", "--port", str(server_port), *SERVER_FLAGS,
         "--set", f"monitor.journal.path={scratch}/journal"],
        scratch / "server.log",
    )
    alertmanager = Process(
        ["prometheus-alertmanager", f"--config.file={scratch}/alertmanager.yml", "--cluster.listen-address=",
         f"--storage.path={scratch}/alertmanager", f"--web.listen-address=127.0.0.1:{alertmanager_port}"],
        scratch / "alertmanager.log",
    )
    watcher = Process(
        ["prometheus", f"--config.file={scratch}/prometheus.yml", f"--storage.tsdb.path={scratch}/data",
         f"--web.listen-address=127.0.0.1:{prometheus_port}"],
        scratch / "prometheus.log",
    )
    with server, alertmanager, watcher:
        url = f"http://127.0.0.1:{server_port}"
        server.wait_for(f"{url}/ready")
        alertmanager.wait_for(f"http://127.0.0.1:{alertmanager_port}/-/ready")
        watcher.wait_for(f"http://127.0.0.1:{prometheus_port}/-/ready")
        play(url, Prometheus(f"http://127.0.0.1:{prometheus_port}"), listener)


# These few texts form groups that lie about 0.5 apart: at the default radius they join in one window and part in the
# next, and CSI swings by half without a change of the policy.
SERVER_FLAGS = ["--set", f"monitor.min_window={WINDOW}", "--set", "monitor.csi.eps=1.0",
                "--set", "cache.max_bytes=10000000"]


def play(url, prometheus, listener):
    step = 0

    def train(run, texts, steps):
        """So many steps of a run, each evaluated and scraped before the next."""
        nonlocal step
        for _ in range(steps):
            step += 1
            fetch(f"{url}/reward", {"inputs": list(texts(step)), "run": run, "step": step})
            row = fetch(f"{url}/runs/{run}/evaluate", {})
            count = f'inform_evaluations_total{{run="{run}"}}'
            wait("a scrape", lambda: any(float(s["value"][1]) > row["number"] for s in prometheus.query(count)))
        return row

    for run in ("hacked", "healthy"):
        texts = [item for one in range(100, 104) for item in answers(one)]
        fetch(f"{url}/reward", {"inputs": texts, "run": run, "role": "baseline"})
        row = train(run, answers, 6)
        assert not row["early_stop"], row
    # A known score, and an input that has none.
    fetch(f"{url}/reward", {"inputs": [{"text": "a"}, {"text": ""}], "run": "healthy"})
    fetch(f"{url}/reward", {"inputs": [{"text": "a"}, {"text": ""}], "run": "healthy"})
    for run in ("hacked", "healthy"):
        assert not prometheus.firing(run), prometheus.firing(run)
    print("healthy runs: no alert")

    row = train("hacked", refusals, 1)
    assert row["early_stop"], row
    alert = listener.wait_for("/page", "firing", alertname="InformEarlyStop", run="hacked")
    assert alert["labels"]["severity"] == "page" and "hacked" in alert["annotations"]["summary"], alert
    delay = prompt_alert(prometheus, 'inform_early_stop{run="hacked"}', "InformEarlyStop", "hacked")
    print(f"hacked run: the page came with the window that stopped it, {delay:.2f} s after the scrape")

    # More of the same: verdicts that ask for several windows.
    row = train("hacked", refusals, 3)
    alert = listener.wait_for("/page", "firing", alertname="InformCollapseAlert", run="hacked")
    assert "collapse" in row["alerts"], row
    assert not prometheus.firing("healthy"), prometheus.firing("healthy")
    check_dashboard(prometheus)

    # Healthy again: the monitor takes its alert back. The verdict of the early stop stays with the run.
    train("hacked", answers, 4)
    listener.wait_for("/page", "resolved", alertname="InformCollapseAlert", run="hacked")
    assert "InformEarlyStop" in prometheus.firing("hacked")
    fetch(f"{url}/runs/hacked", method="DELETE")
    listener.wait_for("/page", "resolved", alertname="InformEarlyStop", run="hacked")
    wait("the run's end", lambda: not prometheus.firing("hacked"))
    others = [alert for _, alert in listener.alerts if alert["labels"].get("run") != "hacked"]
    assert not others, others
    print("resolved: the collapse with healthy answers, the early stop with the run")


if __name__ == "__main__":
    main()
