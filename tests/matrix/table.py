# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The table of docs/matrix.md, from what a run has found."""
import subprocess

MARK = "<!-- What follows is written by tests/matrix/run --write-docs. -->\n"


def version(package):
    said = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True,
                          text=True, check=False).stdout
    # without the epoch and Debian's revision
    return said.split(":")[-1].rsplit("-", 1)[0] or "?"


def cell(result):
    """The path, and why it is TCP."""
    if result is None:
        return "**FAILED**"
    path, reasons = result
    return path + (" (%s)" % ", ".join(sorted(reasons)) if reasons else "")


def lines(programs, pairings, results):
    yield "| program | version | what it is | load | %s | remarks |" % " | ".join(pairings)
    yield "|---" * (len(pairings) + 5) + "|"
    for p in programs:
        remark = p.remark
        if p.unreached:
            remark = "`rsock run` warns: it " + p.unreached
        yield "| %s |" % " | ".join(
            [p.name, version(p.package), p.model, p.load]
            + [cell(results.get((p.name, pairing))) for pairing in pairings] + [remark])


def name(line):
    return line.split("|")[1].strip()


def write(path, programs, ran, pairings, results):
    """The rows of the programs that `ran` are new; of the others, those that are there are kept."""
    with open(path) as f:
        head, _, table = f.read().partition(MARK)
    old = {name(line): line for line in table.splitlines() if line.startswith("| ")}
    with open(path, "w") as f:
        f.write(head + MARK + "\n")
        for line in lines(programs, pairings, results):
            kept = name(line) not in {"program", "---"} | {p.name for p in ran}
            f.write((old.get(name(line), line) if kept else line) + "\n")
