# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What bench/run and bench/lab have in common: options, rounds, results."""
import argparse
import json
import os
import pathlib
import sys

import report
from measure import MeasureError

BUILD = pathlib.Path(os.environ.get("RSOCK_BUILD") or
                     pathlib.Path(__file__).resolve().parent.parent / "build").absolute()
OUT = BUILD / "bench"

GIVE_UP_AFTER = 2  # failures of one task and variant: its other rounds are skipped


def options(prog, doc, quick):
    p = argparse.ArgumentParser(prog=prog, description=doc.splitlines()[0])
    p.add_argument("--rounds", type=int, metavar="N", help="rounds of everything (default 5)")
    p.add_argument("--quick", action="store_true", help=quick)
    p.add_argument("--only", metavar="REGEX", help="only the rows whose name matches (see --list)")
    p.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    args = p.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 5)
    return args


class Progress:
    """One line that rewrites itself on a terminal, one line for each task elsewhere."""

    def __init__(self, total):
        self.total, self.done, self.last = total, 0, None

    def step(self, task, variant, round_):
        self.done += 1
        if sys.stderr.isatty():
            text = f"[{self.done}/{self.total}] {task}: {variant}, round {round_ + 1}"
            sys.stderr.write(f"\r{text:<78}")
        elif task != self.last:
            sys.stderr.write(f"[{self.done}/{self.total}] {task}\n")
        sys.stderr.flush()
        self.last = task

    def end(self):
        if sys.stderr.isatty():
            sys.stderr.write("\r" + " " * 78 + "\r")


def measure(tasks, new_session):
    """Every round runs all variants of a task, each time starting with another one.

    new_session() is a context manager; the tasks get what it yields. Returns (records, errors).
    """
    records, errors = [], []
    progress = Progress(sum(len(t.variants) * t.rounds for t in tasks))
    for task in tasks:
        failures = {}
        for round_ in range(task.rounds):
            turn = round_ % len(task.variants)
            for variant in task.variants[turn:] + task.variants[:turn]:
                progress.step(task.name, variant.title, round_)
                if failures.get(variant.key, 0) >= GIVE_UP_AFTER:
                    continue
                try:
                    with new_session() as session:
                        samples = task.run(session, variant)
                except MeasureError as e:
                    failures[variant.key] = failures.get(variant.key, 0) + 1
                    errors.append({"task": task.name, "variant": variant.key, "round": round_,
                                   "cells": task.cells(variant), "error": str(e)})
                    continue
                for key, (value, fast) in samples.items():
                    row, who = key if isinstance(key, tuple) else (key, variant.key)
                    records.append({"row": row, "variant": who, "round": round_,
                                    "value": value, "fast": fast,
                                    **({"proof": session.proof} if session.proof else {})})
    progress.end()
    return records, errors


def publish(name, args, info, tasks, skipped, measured, draw):
    """Prints the tables; writes NAME.json and, with draw(result, info, path), NAME.svg.

    Returns the exit status: a missed target is none, a failed measurement is.
    """
    records, errors = measured
    result = report.Result([row for t in tasks for row in t.rows], records, errors)
    verdicts = report.judge(result)
    print(report.render(result, verdicts, info, skipped, errors))
    OUT.mkdir(parents=True, exist_ok=True)
    rounds_file, figure = OUT / f"{name}.json", OUT / f"{name}.svg"
    rounds_file.write_text(json.dumps(
        {"machine": info, "rounds": args.rounds, "quick": args.quick, "only": args.only,
         "rows": result.describe(), "targets": verdicts, "skipped": skipped, "errors": errors,
         "records": records}, indent=1) + "\n")
    print(f"\nall rounds: {os.path.relpath(rounds_file)}")
    why_not = draw(result, info, figure)
    print(f"no figure: {why_not}" if why_not else f"figure: {os.path.relpath(figure)}")
    return 1 if errors else 0
