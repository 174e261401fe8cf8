# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""From records to medians, ratios, verdicts and the tables that are printed."""
import dataclasses
import itertools
import statistics

import targets

COLUMNS = [("tcp1", "TCP 1 core"), ("tcp2", "TCP 2 cores"), ("rsock1", "rsock 1 core"),
           ("rsock", "rsock"), ("ring", "ring")]
LAB_COLUMNS = [("verbs", "ib_write_*"), ("rstream", "rstream"), ("rstream_b", "rstream -T b"),
               ("tcp", "TCP"), ("rsock", "rsock")]
RATIOS = [("tcp1", "x TCP 1 core"), ("tcp2", "x TCP 2 cores"), ("ring", "ring x")]


class Result:
    """The medians over the rounds, by row and variant."""

    def __init__(self, rows, records, errors):
        self.rows = rows
        self.failed = {tuple(cell) for e in errors for cell in e["cells"]}  # (row, variant)
        self.values = {}
        self.by_round = {}
        self.slow = set()  # (row, variant): rsock, but not on the fast path
        self.unproven = set()  # (row, variant): rsock, and nobody said on which path
        for r in records:
            key = (r["row"], r["variant"])
            self.values.setdefault(key, []).append(r["value"])
            self.by_round[key + (r["round"],)] = r["value"]
            if r["fast"] is False:
                self.slow.add(key)
            if r["fast"] is None and r["variant"] in ("rsock", "rsock1"):
                self.unproven.add(key)

    def median(self, row, variant):
        values = self.values.get((row.name, variant))
        return statistics.median(values) if values else None

    def extremes(self, row, variant):
        """(lowest, highest) of the rounds, or None."""
        values = self.values.get((row.name, variant))
        return (min(values), max(values)) if values else None

    def spread(self, row):
        """The median absolute deviation over the rounds, relative, of the noisiest column."""
        worst = None
        for (name, _), values in self.values.items():
            middle = statistics.median(values)
            if name == row.name and len(values) > 1 and middle:
                mad = statistics.median(abs(v - middle) for v in values) / abs(middle)
                worst = mad if worst is None else max(worst, mad)
        return worst

    def ratio(self, row, column):
        """What the targets are about: see targets.py."""
        if row.table == "one-sided":
            pairs = [(self.by_round.get((row.name, column, i)), v)
                     for (name, variant, i), v in self.by_round.items()
                     if name == row.name and variant == "plain"]
            ratios = [a / b if row.better == "high" else b / a for a, b in pairs if a and b]
            return statistics.median(ratios) if ratios else None
        if row.table == "with-without":
            plain, rsock = self.median(row, "plain"), self.median(row, "rsock")
            return None if plain is None or rsock is None else rsock - plain
        ours, theirs = self.median(row, "rsock"), self.median(row, column)
        if not ours or not theirs or (row.name, "rsock") in self.slow:
            return None
        if row.table == "lab":
            return ours / theirs
        better = theirs / ours if row.better == "low" else ours / theirs
        return 1 / better if column == "ring" else better

    def is_met(self, row, column):
        """True, False, or None: nothing measured, or too much noise to tell."""
        target, value = targets.find(row.name, column), self.ratio(row, column)
        if target is None or value is None:
            return None
        if row.table == "one-sided":
            again = self.ratio(row, "again")
            if again is None or abs(value - target[1]) < abs(again - 1):
                return None
        return targets.is_met(*target, value)

    def describe(self):
        out = {}
        for row in self.rows:
            keys = [v for name, v in self.values if name == row.name]
            columns = {"main": [c for c, _ in RATIOS], "one-sided": ["again", "client", "server"],
                       "with-without": ["added"],
                       "lab": [c for c, _ in LAB_COLUMNS[:-1]]}[row.table]
            out[row.name] = {**dataclasses.asdict(row),
                             "medians": {v: self.median(row, v) for v in keys},
                             "extremes": {v: self.extremes(row, v) for v in keys},
                             "ratios": {c: self.ratio(row, c) for c in columns},
                             "not_fast": [v for v in keys if (row.name, v) in self.slow]}
        return out


def judge(result):
    """The targets of the rows that were to be measured, with what was found."""
    rows = {r.name: r for r in result.rows}
    verdicts = []
    for name, column, op, bound in targets.TARGETS:
        if name not in rows:
            continue
        verdicts.append({"row": name, "column": column, "op": op, "bound": bound,
                         "value": result.ratio(rows[name], column),
                         "met": result.is_met(rows[name], column)})
    return verdicts


def number(value, unit):
    if value is None:
        return "-"
    if unit == "k/s":
        value /= 1000
    if abs(value) < 10:
        return f"{value:.3f}" if unit in ("s/GB", "ms") else f"{value:.2f}"
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def _factor(value):
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _judged(result, row, column, text):
    """`text` with the target beside it, if there is one."""
    target = targets.find(row.name, column)
    if target is None:
        return text
    op, bound = target
    word = {True: " met", False: " MISSED", None: " ?"}[result.is_met(row, column)]
    return f"{text} ({op}{bound:g}{word if result.ratio(row, column) is not None else ''})"


def _main_line(result, row):
    cells = [f"  {row.label}", row.unit]
    for key, _ in COLUMNS:
        cell = number(result.median(row, key), row.unit)
        if (row.name, key) in result.slow:
            cell = "TCP!"
        elif (row.name, key) in result.unproven and not row.name.startswith("connrate"):
            cell += "?"
        cells.append(cell)
    for key, _ in RATIOS:
        value = result.ratio(row, key)
        cells.append(_judged(result, row, key, "-" if value is None else _factor(value)))
    spread = result.spread(row)
    return cells + ["-" if spread is None else f"{spread:.0%}"]


def _one_sided_line(result, row):
    cells = [f"  {row.label}", row.unit, number(result.median(row, "plain"), row.unit)]
    for key in ("again", "client", "server"):
        value = result.ratio(row, key)
        cells.append(_judged(result, row, key, "-" if value is None else f"{value:.3f}"))
    spread = result.spread(row)
    return cells + ["-" if spread is None else f"{spread:.0%}"]


def _with_without_line(result, row):
    added = result.ratio(row, "added")
    return [f"  {row.label}", row.unit, number(result.median(row, "plain"), row.unit),
            number(result.median(row, "rsock"), row.unit),
            _judged(result, row, "added", number(added, row.unit))]


def _lab_line(result, row):
    cells = [f"  {row.label}", row.unit]
    for key, _ in LAB_COLUMNS:
        cell = number(result.median(row, key), row.unit)
        if result.extremes(row, key):
            low, high = (number(v, row.unit) for v in result.extremes(row, key))
            cell += f" ({low}-{high})"
        elif (row.name, key) in result.failed:
            cell = "FAILED"
        cells.append(cell)
    return cells


def _lab_ratio_line(result, row):
    cells = [f"  {row.label}", "better < 1" if row.better == "low" else "better > 1"]
    for key, _ in LAB_COLUMNS[:-1]:
        value = result.ratio(row, key)
        cells.append(_judged(result, row, key, "-" if value is None else _factor(value)))
    return cells


TABLES = [
    ("main", _main_line, ["", ""] + [t for _, t in COLUMNS] + [t for _, t in RATIOS] + ["+-"]),
    ("one-sided", _one_sided_line,
     ["", "", "plain", "plain again", "rsock client", "rsock server", "+-"]),
    ("with-without", _with_without_line, ["", "", "without", "with rsock", "added"]),
    ("lab", _lab_line, ["median (lowest-highest)", ""] + [t for _, t in LAB_COLUMNS]),
    ("lab", _lab_ratio_line,
     ["rsock divided by", ""] + [t for _, t in LAB_COLUMNS[:-1]]),
]


def _table(lines):
    """Columns as wide as they need to be; the first two are flush left; a string is a heading."""
    cells = [line for line in lines if isinstance(line, list)]
    widths = [max(len(c[i]) for c in cells) for i in range(len(cells[0]))]
    out = []
    for line in lines:
        if isinstance(line, str):
            out.append(line)
        else:
            out.append("  ".join(c.ljust(w) if i < 2 else c.rjust(w)
                                 for i, (c, w) in enumerate(zip(line, widths))).rstrip())
    return out


def render(result, verdicts, info, skipped, errors):
    out = [f"{info['cpu']}, {info['cpus']} CPUs" + (" (virtual)" if info["virtual"] else "") +
           f", Linux {info['kernel']}, CPUs used: {', '.join(map(str, info['cpus_used']))}, "
           f"load {info['load_before'][0]:.2f}, {info['seconds']:.0f} s"]
    if info["load_before"][0] > 0.5:
        out.append("The machine was busy with something else: do not trust the figures.")
    for name, line, heads in TABLES:
        lines = [heads]
        rows = [r for r in result.rows if r.table == name]
        for group, members in itertools.groupby(rows, key=lambda r: r.group):
            lines.append(group)
            lines += [line(result, row) for row in members]
        if rows:
            out += ["", *_table(lines)]
    known = [v for v in verdicts if v["met"] is not None]
    out.append("")
    if any(r.table == "main" for r in result.rows):
        out += ["Medians of the rounds. `x TCP`: how many times better rsock (two cores) is than "
                "TCP. `ring x`: how many", "times worse than the bare ring. `+-`: the median "
                "absolute deviation of the noisiest column."]
    out += [f"Targets: {sum(v['met'] for v in known)} of {len(known)} met" +
            (f", {len(verdicts) - len(known)} not decided" if len(known) < len(verdicts) else "")]
    if result.slow:
        out.append("TCP! = rsock was there, but the streams were not on the fast path.")
    out += [f"skipped: {s}" for s in skipped]
    out += [f"FAILED: {e['task']}, {e['variant']}, round {e['round'] + 1}: {e['error']}"
            for e in errors]
    return "\n".join(out)
