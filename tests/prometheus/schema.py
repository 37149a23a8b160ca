"""Checks the dashboard against Grafana's published schema, and compose.yaml with Docker Compose itself.

    target/clients/bin/pip install -r tests/prometheus/requirements.txt
    target/clients/bin/python tests/prometheus/schema.py

The schema is the one that grafana-foundation-sdk is generated from: models with typed fields. A dashboard
holds to it if each of its keys is a field of its model and each value has that field's type.
"""

import enum
import json
import subprocess
import sys
import types
import typing
from pathlib import Path

import compose
from grafana_foundation_sdk.cog import runtime, variants
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard

ROOT = Path(__file__).resolve().parents[2]


def matches(value, hint, at):
    """Problems of a value that should have the type `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (object, typing.Any) or value is None and hint is type(None):
        return []
    if origin in (typing.Union, types.UnionType):
        if isinstance(value, dashboard.Panel):
            return model(value, at)
        tried = [matches(value, one, at) for one in arguments if one is not type(None)]
        return [] if value is None and type(None) in arguments else min(tried, key=len)
    if origin is typing.Literal:
        return [] if value in arguments else [f"{at}: {value!r} is none of {arguments}"]
    if origin is list and isinstance(value, list):
        return [problem for i, one in enumerate(value) for problem in matches(one, arguments[0], f"{at}[{i}]")]
    if origin is dict and isinstance(value, dict):
        return [problem for k, one in value.items() for problem in matches(one, arguments[1], f"{at}.{k}")]
    if isinstance(hint, type):
        if issubclass(hint, enum.Enum):
            known = [one.value for one in hint]
            return [] if value in known else [f"{at}: {value!r} is none of {known}"]
        if hint is variants.Dataquery:
            return model(value, at) if hasattr(value, "expr") else [f"{at}: no Prometheus query"]
        if hasattr(hint, "from_json") and isinstance(value, hint):
            return model(value, at)
        if hint is str and isinstance(value, str):
            return []
        # True is no number here.
        if hint is float and type(value) is int or type(value) is hint:
            return []
        # Models leave what they hold in lists as it was.
        if hasattr(hint, "from_json") and isinstance(value, dict):
            read = hint.from_json(value)
            return model(read, at) + same(value, plain(read), at)
    return [f"{at}: {value!r} is no {hint}"]


def model(value, at):
    """Problems of the fields of a model."""
    if not hasattr(value, "from_json"):
        return []
    problems = []
    for name, hint in typing.get_type_hints(type(value)).items():
        problems += matches(getattr(value, name), hint, f"{at}.{name}")
    if isinstance(value, dashboard.Panel):
        # Typed as any object there; each kind of panel has a model of its own.
        kind = runtime.panelcfg_config(value.type_val)
        if kind is None:
            problems.append(f"{at}: there is no panel `{value.type_val}`")
        else:
            problems += model(value.options, f"{at}.options")
            problems += model(value.field_config.defaults.custom, f"{at}.fieldConfig.defaults.custom")
    return problems


def plain(value):
    return json.loads(JSONEncoder().encode(value))


def same(found, read, at):
    """Keys of the file that no model has."""
    if isinstance(found, dict) and isinstance(read, dict):
        unknown = [f"{at}.{key}: the schema has no such key" for key in found if key not in read and found[key] is not None]
        return unknown + [p for key in found if key in read for p in same(found[key], read[key], f"{at}.{key}")]
    if isinstance(found, list) and isinstance(read, list) and len(found) == len(read):
        return [p for i, (a, b) in enumerate(zip(found, read)) for p in same(a, b, f"{at}[{i}]")]
    return [] if found == read else [f"{at}: {found!r} was read as {read!r}"]


def problems_of(found):
    read = dashboard.Dashboard.from_json(found)
    return model(read, "dashboard") + same(found, plain(read), "dashboard")


def main():
    register_default_plugins()
    file = ROOT / "configs" / "grafana" / "dashboards" / "inform.json"
    problems = problems_of(json.loads(file.read_text()))
    assert not problems, "\n".join(problems)
    # The check itself: what a slip of the pen would make of the file must not pass.
    for old, new in [
        ('"graphTooltip": 1', '"graphTooltip": 7'),
        ('"legendFormat"', '"legend_format"'),
        ('"type": "timeseries"', '"type": "timeserie"'),
        ('"drawStyle": "line"', '"drawStyle": "lines"'),
        ('"mode": "multi"', '"mode": "many"'),
        ('"x": 12', '"x": "12"'),
        ('"weekStart"', '"weekstart"'),
    ]:
        text = file.read_text()
        assert old in text, old
        assert problems_of(json.loads(text.replace(old, new))), f"{new} passed"
    print("dashboard: holds to Grafana's schema")

    program = Path(compose.__file__).parent / "docker-compose"
    subprocess.run([program, "-f", ROOT / "compose.yaml", "config", "--quiet"], check=True)
    print("compose.yaml: docker compose takes it")


if __name__ == "__main__":
    sys.exit(main())
