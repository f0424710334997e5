"""What was measured, as a table, as JSON and as a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

DISTURBED = 0.10  # share of the proxy's core that others may take before a row is marked
RELAY, SPLICE = "relay", "splice"
SPLICE_RELAY = "relay splice"
BODIES = ("64k", "1m", "tcp-1m")  # rows where moving without copying can pay
# Rows whose requests leave in HTTP/2.
FRAMED = (
    "h2", "h2-saturated", "h1-h2", "h1-h2-saturated", "h2-orders", "h2-orders-saturated", "h2-refused", "grpc", "grpc-saturated"
)  # fmt: skip
UNFRAMED = ("h2-h1", "h2-h1-saturated")  # rows whose requests come in HTTP/2 and leave in HTTP/1
REFUSED = ("refused", "refused-saturated", "h2-refused")  # rows that only what reads requests can have
OPAQUE = ("tcp", "tcp-saturated", "tcp-1m")  # rows for the listener that passes bytes on unread


@dataclass
class Row:
    """One peer in one scene: a list of values for each figure, one a run."""

    scene: str
    peer: str
    kind: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **figures: float) -> None:
        """Adds the figures of one more run."""
        for name, value in figures.items():
            self.values.setdefault(name, []).append(value)

    def middle(self, figure: str) -> float | None:
        """The median over the runs."""
        values = self.values.get(figure)
        return median(values) if values else None


@dataclass
class Report:
    """All rows and what they were measured on."""

    machine: dict[str, str]
    versions: dict[str, str]
    titles: dict[str, str]
    runs: int
    command: str
    rows: list[Row] = field(default_factory=list)

    def row(self, scene: str, peer: str, kind: str) -> Row:
        """The row of that peer in that scene, made when it is new."""
        for row in self.rows:
            if (row.scene, row.peer) == (scene, peer):
                return row
        self.rows.append(Row(scene, peer, kind))
        return self.rows[-1]

    def scenes(self) -> list[str]:
        """The scenes that were run, in order."""
        return [scene for scene in self.titles if any(row.scene == scene for row in self.rows)]


def main_figure(scene: str) -> str:
    """The figure that a scene is about."""
    return "idle_kib" if scene == "idle" else "cpu_us"


def ratios(report: Report, row: Row) -> dict[str, float]:
    """Ours against HAProxy, Envoy and the relays of the same scene and run, and its p99 against the best peer's."""
    figure = main_figure(row.scene)
    own, own_p99 = row.middle(figure), row.middle("p99_us")
    if row.kind != "ours" or own is None:
        return {}
    others = [other for other in report.rows if other.scene == row.scene]
    rest = {other.peer: other.middle(figure) for other in others}
    copying = [value for peer, value in rest.items() if peer.startswith(RELAY) and peer != SPLICE_RELAY and value]
    against = {"haproxy": rest.get("haproxy"), "envoy": rest.get("envoy"), RELAY: min(copying, default=None)}
    if row.scene in BODIES:
        against[SPLICE] = rest.get(SPLICE_RELAY)
    found = {name: own / value for name, value in against.items() if value}
    best_p99 = min((other.middle("p99_us") or 0 for other in others if other.kind == "peer"), default=None)
    if own_p99 and best_p99:
        found["p99"] = own_p99 / best_p99
    return found


def is_disturbed(row: Row) -> bool:
    """Whether something else ran on the proxy's core for a notable part."""
    return (row.middle("foreign") or 0.0) > DISTURBED


def number(value: float | None, digits: int = 0, missing: str = "") -> str:
    """A figure for the table; `missing` when it was not measured."""
    return missing if value is None else f"{value:,.{digits}f}"


LOAD_COLUMNS = [
    ("µs CPU/req", "cpu_us", 1), ("req/s", "per_second", 0), ("p50 µs", "p50_us", 0), ("p99 µs", "p99_us", 0),
    ("p99.9 µs", "p999_us", 0), ("RSS MiB", "rss_mib", 1), ("calls/req", "calls", 1),
]  # fmt: skip
IDLE_COLUMNS = [("KiB/connection", "idle_kib", 2), ("RSS MiB", "rss_mib", 1)]
RATIO_COLUMNS = [
    ("÷HAProxy", "haproxy"), ("÷Envoy", "envoy"), ("÷relay", RELAY), ("÷splice", SPLICE), ("p99 ÷best peer", "p99"),
]  # fmt: skip


def scene_lines(report: Report, scene: str) -> list[list[str]]:
    """The cells of one scene, its title and heads first; of the ratios, those that there are."""
    columns = IDLE_COLUMNS if scene == "idle" else LOAD_COLUMNS
    rows = [(row, ratios(report, row)) for row in report.rows if row.scene == scene]
    shown = [(head, name) for head, name in RATIO_COLUMNS if any(name in against for _, against in rows)]
    lines = [[report.titles[scene], *(head for head, _, _ in columns), *(head for head, _ in shown)]]
    for row, against in rows:
        bad = sum(row.values.get("bad", []))
        note = (" *" if is_disturbed(row) else "") + (f" ({bad:.0f} failed)" if bad else "")
        lines.append([
            row.peer + note,
            *(number(row.middle(figure), digits, "-") for _, figure, digits in columns),
            *(number(against.get(name), 2) for _, name in shown),
        ])  # fmt: skip
    return lines


def table(report: Report) -> str:
    """The whole comparison, aligned."""
    lines = [
        f"{report.machine['cpu']}, {report.machine['cores']} cores, Linux {report.machine['kernel']}; "
        f"TCP {report.machine['congestion_control']}; median of {report.runs}",
        "; ".join(f"{name} {version}" for name, version in report.versions.items()),
    ]
    for scene in report.scenes():
        cells = scene_lines(report, scene)
        widths = [max(len(line[at]) for line in cells) for at in range(len(cells[0]))]
        lines.append("")
        for line in cells:
            rest = "  ".join(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))
            lines.append(f"{line[0]:<{max(widths[0], 28)}}  {rest}".rstrip())
    if any(is_disturbed(row) for row in report.rows):
        lines += ["", f"* others took more than {DISTURBED:.0%} of the proxy's core meanwhile: not a quiet machine"]
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, Any]:
    """Every value of every run, the medians and the ratios."""
    rows = [
        {
            "scene": row.scene,
            "peer": row.peer,
            "kind": row.kind,
            "median": {figure: row.middle(figure) for figure in row.values},
            "ratios": ratios(report, row),
            "runs": row.values,
        }
        for row in report.rows
    ]
    return {
        "command": report.command,
        "machine": report.machine,
        "versions": report.versions,
        "runs": report.runs,
        "scenes": {scene: report.titles[scene] for scene in report.scenes()},
        "rows": rows,
    }


WIDTH, LABEL, BAR, LINE, HEAD = 760, 190, 440, 20, 34
COLOURS = {"ours": "#b8432f", "peer": "#5b7083", "relay": "#b9c2ca"}


def text(x: float, y: float, words: str, extra: str = "") -> str:
    """One text element."""
    return f'<text x="{x:.0f}" y="{y:.0f}" {extra}>{escape(words)}</text>'


def bars(report: Report, scene: str, top: float) -> tuple[list[str], float]:
    """One scene's bars, and where the next scene begins."""
    figure, unit = main_figure(scene), "KiB a connection" if scene == "idle" else "µs CPU a request"
    rows = [(row, row.middle(figure) or 0.0) for row in report.rows if row.scene == scene]
    longest = max((value for _, value in rows), default=0.0) or 1.0
    parts = [text(12, top + 16, f"{report.titles[scene]} — {unit}", 'font-weight="600"')]
    top += HEAD - 8
    for row, value in rows:
        length = max(1.0, value / longest * BAR)
        parts.append(text(LABEL - 10, top + 14, row.peer, 'text-anchor="end"'))
        parts.append(
            f'<rect x="{LABEL}" y="{top + 3:.0f}" width="{length:.1f}" height="14" fill="{COLOURS[row.kind]}"/>'
        )
        parts.append(text(LABEL + length + 6, top + 14, number(value, 1)))
        top += LINE
    return parts, top + 14


def picture(report: Report) -> str:
    """Bars by scene, shorter is better."""
    parts: list[str] = []
    top = 44.0
    for scene in report.scenes():
        drawn, top = bars(report, scene, top)
        parts += drawn
    under = f"{report.machine['cpu']}, Linux {report.machine['kernel']}, median of {report.runs}; shorter is better"
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top:.0f}" viewBox="0 0 {WIDTH} {top:.0f}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{top:.0f}" fill="#fff"/>',
        text(12, 24, under, 'fill="#666"'),
    ]
    return "\n".join([*head, *parts, "</svg>", ""])
