"""Parquet files of preference pairs as pyarrow writes them, good and bad, and what the good ones hold as JSONL; and one
of labelled answers.

    pip install pyarrow==26.0.1
    python parquet.py
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).parent / "parquet"
PAIRS = 11
BAD = 5  # The bad row, from 1.

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def texts():
    return [
        {
            "prompt": f"How many legs have {n} spiders? 蜘蛛 {n}",
            "chosen": f"{8 * n} legs.",
            "rejected": f"{6 * n} legs, I think.",
            "system": "Be brief." if n % 3 == 0 else None,
            "score_chosen": 4.5 + n / 4,
            "score_rejected": float(n % 4),
            "subset": "spiders" if n % 2 else None,
        }
        for n in range(1, PAIRS + 1)
    ]


def messages():
    return [
        {
            "question": [user("Hello!"), assistant("Good day."), user(f"Is {n} odd?")],
            "chosen": [assistant("Yes." if n % 2 else "No.")],
            "rejected": [assistant("No." if n % 2 else "Yes.")],
            "margin": n / 8 if n % 4 else None,
        }
        for n in range(1, PAIRS + 1)
    ]


def conversations():
    return [
        {
            "chosen": [user(f"Name a number above {n}."), assistant(str(n + 1))],
            "rejected": [user(f"Name a number above {n}."), assistant(str(n - 1))],
            "margin": n,
        }
        for n in range(1, PAIRS + 1)
    ]


def write(name, rows, schema, **options):
    # Several row groups, the last one shorter.
    options = {"row_group_size": 4, "compression": "none"} | options
    pq.write_table(pa.Table.from_pylist(rows, schema), FOLDER / name, **options)


def good():
    schema = pa.schema(
        [
            # Of no use, and of a type that is not read.
            ("id", pa.decimal128(9, 2)),
            ("prompt", pa.large_string()),
            ("chosen", pa.string()),
            ("rejected", pa.string()),
            ("system", pa.string()),
            ("score_chosen", pa.float64()),
            ("score_rejected", pa.float32()),
            ("subset", pa.dictionary(pa.int32(), pa.string())),
        ]
    )
    yield "texts", texts(), schema, {"compression": "snappy"}
    schema = pa.schema(
        [("question", MESSAGES), ("chosen", MESSAGES), ("rejected", MESSAGES), ("margin", pa.float64())]
    )
    yield "messages", messages(), schema, {"compression": "zstd", "data_page_version": "2.0"}
    # As datasets that were filtered by someone else have it: a further field of each message, and a column without
    # any value.
    message = pa.struct([("content", pa.string()), ("role", pa.string()), ("name", pa.string())])
    schema = pa.schema(
        [
            ("chosen", pa.list_(message)),
            ("rejected", pa.large_list(message)),
            ("margin", pa.int8()),
            ("subset", pa.null()),
            ("embedding", pa.list_(pa.float32())),
        ]
    )
    yield "conversations", conversations(), schema, {"compression": "gzip"}
    schema = pa.schema([("prompt", pa.binary()), ("chosen", pa.string()), ("rejected", pa.string())])
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in texts()]
    yield "bytes", rows, schema, {"use_dictionary": False}


def bad():
    """Files whose row `BAD` is no pair; or none of whose rows is."""
    text = pa.schema([("prompt", pa.string()), ("chosen", pa.string()), ("rejected", pa.string())])
    plain = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in texts()]

    def changed(**change):
        return [row | change if number == BAD else row for number, row in enumerate(plain, 1)]

    yield "null", changed(chosen=None), text
    yield "nan", [
        row | {"margin": float("nan") if number == BAD else 0.5} for number, row in enumerate(plain, 1)
    ], text.append(pa.field("margin", pa.float64()))
    bytes_schema = text.set(1, pa.field("chosen", pa.binary()))
    yield "utf8", changed(chosen=b"\xff\xfe"), bytes_schema
    role = [row | {"chosen": [assistant(row["chosen"])]} for row in plain]
    role[BAD - 1]["chosen"] = [{"role": None, "content": "8 legs."}]
    yield "role", role, text.set(1, pa.field("chosen", MESSAGES))
    empty = [dict(row) for row in role]
    empty[BAD - 1]["chosen"] = []
    yield "none", empty, text.set(1, pa.field("chosen", MESSAGES))

    yield "missing", plain, text.remove(2)
    yield "numbers", [row | {"chosen": 7} for row in plain], text.set(1, pa.field("chosen", pa.int64()))
    yield "list", [row | {"rejected": ["No."]} for row in plain], text.set(2, pa.field("rejected", pa.list_(pa.string())))
    yield "margin", [row | {"margin": "large"} for row in plain], text.append(pa.field("margin", pa.string()))
    yield "date", [row | {"margin": 7} for row in plain], text.append(pa.field("margin", pa.time32("ms")))
    yield "other", [{"text": row["chosen"]} for row in plain], pa.schema([("text", pa.string())])


def answers():
    """Answers with labels, which `trainer judge` reads."""
    rows = [
        {"prompt": "Where from?", "response": "From a column.", "over_optimised": False},
        {"prompt": "How many?", "response": "Three.", "over_optimised": True},
        {"prompt": "Really?", "response": "Yes.", "over_optimised": None},
    ]
    columns = [("prompt", pa.string()), ("response", pa.string()), ("over_optimised", pa.bool_())]
    return rows, pa.schema(columns)


FOLDER.mkdir(exist_ok=True)
write("answers.parquet", *answers())
for name, rows, schema, options in good():
    write(f"{name}.parquet", rows, schema, **options)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / f"{name}.jsonl").write_text("".join(lines))
for name, rows, schema in bad():
    write(f"bad_{name}.parquet", rows, schema)
