"""The report as a page of its own: charts over the windows, alarms and their rows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import date
from html import escape
from importlib.util import find_spec
from itertools import groupby
from typing import Any

from psycopg.rows import dict_row

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring.report import Report, Told

Row = dict[str, Any]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #ddd }
pre { background: #f5f5f5; padding: .6rem; white-space: pre-wrap }
.alarm { color: #b00020; font-weight: 600 } svg { max-width: 100%; height: auto }
"""
_CAN_DRAW = find_spec("matplotlib") is not None
_CANNOT = "<p>Charts need matplotlib: pip install 'embedline[report]'</p>"
_COLUMNS = ("metric", "slice", "last_day", "rows", "value", "low", "high", "state")


def page(store: Connection, report: Report) -> str:
    """Without charts where matplotlib is missing; it says so."""
    history = _history(store, report.use_case)
    charts = [
        _chart(name, list(rows), report.alarms)
        for name, rows in groupby(history, key=_series)
        if _CAN_DRAW
    ]
    charts = charts if _CAN_DRAW else [_CANNOT]
    alarms = [
        f"<h3 class=alarm>Alarm {told.id}</h3><pre>{escape(told.text)}</pre>"
        for told in report.alarms
    ]
    problems = [f"<p class=alarm>{escape(said)}</p>" for said in report.problems]
    name = escape(report.use_case)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title>"
        f"<style>{_STYLE}</style><h1>{name}</h1>"
        + "".join([*problems, *(alarms or ["<p>No alarm is on.</p>"])])
        + _table(report.metrics)
        + "".join(charts)
        + "</html>\n"
    )


def _history(store: Connection, use_case: str) -> list[Row]:
    with store.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT h.feature, h.metric, h.slice, h.last_day, h.state, h.value, h.low,"
            " h.high, h.least, h.noise FROM embedline.monitor_history h"
            " JOIN embedline.monitor m USING (use_case, feature, model_version, metric,"
            "  slice) WHERE h.use_case = %s ORDER BY 1, 2, 3, 4",
            [use_case],
        ).fetchall()


def _series(row: Row) -> tuple[str, str, str]:
    return row["feature"], row["metric"], row["slice"]


def _table(metrics: Sequence[Row]) -> str:
    head = "".join(f"<th>{name.replace('_', ' ')}" for name in _COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(row[name])}" for name in _COLUMNS)
        for row in metrics
    )
    return f"<table><tr>{head}{rows}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _chart(
    series: tuple[str, str, str], rows: Sequence[Row], alarms: Sequence[Told]
) -> str:
    measured = [row for row in rows if row["value"] is not None]
    if not measured:
        return ""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4), layout="constrained")
    axes: Any = figure.subplots()
    _draw(axes, measured)
    for told in alarms:
        if told.series == series:
            axes.axvspan(
                told.since, measured[-1]["last_day"], color="#b00020", alpha=0.08
            )
    axes.set_title(" ".join(filter(None, series[1:])), loc="left", fontsize=10)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def _draw(axes: Any, measured: Sequence[Row]) -> None:
    """The value with its interval, and up to where it is usual."""
    days: list[date] = [row["last_day"] for row in measured]
    axes.plot(days, [row["value"] for row in measured], marker="o", markersize=3)
    if all(row["low"] is not None for row in measured):
        lows, highs = ([row[end] for row in measured] for end in ("low", "high"))
        axes.fill_between(days, lows, highs, alpha=0.2)
    if all(row["least"] is not None for row in measured):
        usual = [max(row["least"], row["noise"] or 0) for row in measured]
        axes.plot(days, usual, linestyle="--", linewidth=1, color="grey")
    beyond = [row for row in measured if row["state"] == "beyond"]
    axes.plot(
        [row["last_day"] for row in beyond],
        [row["value"] for row in beyond],
        linestyle="",
        marker="o",
        color="#b00020",
    )
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
