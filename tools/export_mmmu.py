"""MMMU's published Parquet files (one folder a subject) as the lines and pictures that `mipha eval mmmu` reads.

    pip install pyarrow
    python3 tools/export_mmmu.py MMMU/ -o mmmu/ --split validation
    mipha eval mmmu --data mmmu/ --model DIR
"""

import argparse
import ast
import json
import pathlib

import pyarrow.parquet


def literal(text):
    """Options and some answers are Python lists written as text."""
    return ast.literal_eval(text) if text.startswith("[") and text.endswith("]") else text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("-o", "--out", type=pathlib.Path, required=True)
    parser.add_argument("--split", default="validation")
    args = parser.parse_args()
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    files = sorted(args.source.rglob(f"{args.split}*.parquet"))
    if not files:
        parser.error(f"{args.source} has no {args.split}*.parquet")
    with open(args.out / "mmmu.jsonl", "w", encoding="utf-8") as lines:
        for file in files:
            for row in pyarrow.parquet.read_table(file).to_pylist():
                name = f"images/{row['id']}{pathlib.Path(row['image_1'].get('path') or '.png').suffix or '.png'}"
                (args.out / name).write_bytes(row["image_1"]["bytes"])
                line = {key: row[key] for key in ("id", "question", "question_type")}
                line |= {"options": literal(row["options"]), "answer": literal(row["answer"]), "image": name}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
