# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The figure: latency by size, bandwidth, CPU time, redis; drawn by gnuplot."""
import math
import shutil
import subprocess

import report

COLOURS = {"tcp1": "#5b7fa6", "tcp2": "#b4c7dc", "rsock1": "#f2b880", "rsock": "#d1495b",
           "ring": "#3a3a3a", "verbs": "#3a3a3a", "rstream": "#7d9d6f", "rstream_b": "#c3d4b8",
           "tcp": "#5b7fa6"}
NAMES = dict(report.COLUMNS + report.LAB_COLUMNS)

HEAD = """\
set terminal svg size 1200,900 noenhanced font "DejaVu Sans,Helvetica,sans-serif,15" \\
background "white"
set output "{out}"
set encoding utf8
set multiplot layout 2,2 title "{title}" font ",17" margins 0.065,0.985,0.06,0.85 \\
spacing 0.075,0.13
set border 3 lc rgb "#888888"
set grid ytics lc rgb "#e4e4e4" lw 1
set title font ",16" offset 0,-0.3
unset key
"""

LATENCY = """\
set title "Round trip by message size, blocking sockets, median (µs)"
set logscale xy
set xrange [0.6:110000]
set yrange [{low}:{high}]
set xtics nomirror textcolor rgb "#333333" \\
("1 B" 1, "64 B" 64, "1 KiB" 1024, "16 KiB" 16384, "    64 KiB" 65536)
set ytics nomirror textcolor rgb "#333333" format "%g"
plot {curves}
unset logscale
unset object
unset label
"""

BARS = """\
set title "{title}"
set style data histogram
set style histogram clustered gap 1
set style fill solid 1.0 noborder
set boxwidth 0.88
set xrange [-0.6:{last}]
set yrange [0:*]
unset xtics
set xtics nomirror scale 0 textcolor rgb "#333333"
set ytics auto nomirror textcolor rgb "#333333" format "%g"
plot {curves}
unset object
unset label
"""


def _columns(table):
    return [key for key, _ in (report.LAB_COLUMNS if table == "lab" else report.COLUMNS)]


def _block(name, lines):
    return f"${name} << EOD\n" + "\n".join(lines) + "\nEOD\n"


def _legend(keys):
    """One for all panels: the first panel draws it and the others do without."""
    script, step = "", 0.15
    for i, key in enumerate(keys):
        x = 0.5 + (i - len(keys) / 2) * step + 0.01
        script += (f'set object rectangle from screen {x:.3f},0.927 to screen {x + 0.02:.3f},0.943 '
                   f'fc rgb "{COLOURS[key]}" fs solid noborder\n'
                   f'set label "{NAMES[key]}" at screen {x + 0.028:.3f},0.935 left '
                   f'tc rgb "#333333"\n')
    return script


def _latency(result, rows):
    script, curves, all_values = "", [], []
    for key in _columns("main"):
        points = [(int(r.name.split("/")[2]), result.median(r, key)) for r in rows]
        points = [(size, ns / 1000) for size, ns in points if ns]
        if points:
            script += _block(f"latency_{key}", [f"{s} {us:.4f}" for s, us in points])
            dash = " dt 2" if key == "ring" else ""
            curves.append(f'$latency_{key} using 1:2 with linespoints lw 2.5 pt 7 ps 0.6{dash} '
                          f'lc rgb "{COLOURS[key]}"')
            all_values += [us for _, us in points]
    if not curves:
        return ""
    low = 10 ** math.floor(math.log10(min(all_values)))
    high = 10 ** math.ceil(math.log10(max(all_values)))
    return script + LATENCY.format(low=low, high=high, curves=", ".join(curves))


def _bars(result, name, title, rows, bar):
    """rows: [(row, label)]; bar(row, variant): the height, or None."""
    if not rows:
        return ""
    keys = [k for k in _columns(rows[0][0].table)
            if any(bar(r, k) is not None for r, _ in rows)]
    if not keys:
        return ""
    lines = []
    for row, label in rows:
        heights = [bar(row, k) for k in keys]
        lines.append(" ".join([f'"{label}"'] +
                              ["NaN" if h is None else f"{h:.4f}" for h in heights]))
    curves = [f'${name} using {i + 2}:xtic(1) lc rgb "{COLOURS[k]}"'
              for i, k in enumerate(keys)]
    return _block(name, lines) + BARS.format(title=title, last=len(rows) - 0.4,
                                             curves=", ".join(curves))


def _pick(result, *wanted):
    """[(row, label)] of those (name, label) that were measured."""
    rows = {r.name: r for r in result.rows}
    return [(rows[name], label) for name, label in wanted if name in rows]


def draw(result, info, path):
    """Returns None, or why there is no figure."""
    def pick(*wanted):
        return _pick(result, *wanted)

    def gigabytes(row, key):
        value = result.median(row, key)
        return value and value / 1000

    def relative(row, key):
        value, base = result.median(row, key), result.median(row, "tcp1")
        return value / base if value and base else None

    latency = [r for r in result.rows
               if r.name.startswith("pingpong/blocking/") and r.name.endswith("/median")]
    panels = [
        _latency(result, latency),
        _bars(result, "bandwidth", "Bandwidth of one stream (GB/s)",
              pick(("stream/65536/bandwidth", "64 KiB writes"),
                   ("stream/1048576/bandwidth", "1 MiB writes"), ("iperf3/bandwidth", "iperf3")),
              gigabytes),
        _bars(result, "cpu", "CPU time of both ends (s/GB; lower is better)",
              pick(("stream/65536/cpu", "64 KiB writes"), ("stream/1048576/cpu", "1 MiB writes"),
                   ("iperf3/cpu", "iperf3")), result.median),
        _bars(result, "requests", "Requests per second, relative to TCP on one core",
              pick(("redis/c1-P1/get", "redis, 1 client"), ("redis/c50-P1/get", "50 clients"),
                   ("redis/c50-P16/get", "50, -P 16"), ("nginx", "nginx, 64")), relative),
    ]
    return _write(result, "main", panels, f"{info['cpu']}, Linux {info['kernel']}", path)


def draw_lab(result, info, path):
    """The same for bench/lab."""
    def thousands(row, key):
        value = result.median(row, key)
        return value and value / 1000

    def bars(name, title, bar, *wanted):
        return _bars(result, name, title, _pick(result, *wanted), bar)

    panels = [
        bars("latency", "64 B, half the round trip (µs; lower is better)", result.median,
             ("lab/latency/blocking/typical", "typical"),
             ("lab/latency/epoll/typical", "typical, epoll"),
             ("lab/latency/blocking/mean", "mean")),
        bars("bandwidth", "Bandwidth of one stream (MB/s)", result.median,
             ("lab/bandwidth", "64 KiB writes"), ("lab/iperf3", "iperf3")),
        bars("instructions", "User-space instructions for a 64 B message (lower is better)",
             result.median, ("lab/instructions/pingpong", "there and back"),
             ("lab/instructions/oneway", "one way")),
        bars("requests", "redis, requests per second (1000)", thousands,
             ("lab/redis/c1", "1 client"), ("lab/redis/c50", "50 clients"))]
    title = f"Two hosts with {info['device']}, MTU {info['mtu']}; {info['cpu']}"
    return _write(result, "lab", panels, title, path)


def _write(result, table, panels, title, path):
    if not shutil.which("gnuplot"):
        return "gnuplot is not installed"
    if not any(panels):
        return "nothing to draw was measured"
    shown = [k for k in _columns(table) if any(r.table == table and result.median(r, k)
                                     for r in result.rows)]
    script = HEAD.format(out=path, title=title.replace('"', "")) + _legend(shown) + \
        "".join(p for p in panels if p)
    p = subprocess.run(["gnuplot"], input=script + "unset multiplot\n", text=True,
                       capture_output=True, check=False, timeout=30)
    return None if p.returncode == 0 else f"gnuplot: {p.stderr.strip()}"
