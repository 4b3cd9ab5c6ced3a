"""Ask: status, explain."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from embedding_tasks import terminal, use_case
from embedding_tasks.cli.app import AsJson, Feature, Key, Name, OneName, app


@app.command()
def status(
    name: OneName = None,
    as_json: AsJson = False,
) -> None:
    """Coverage, backlog, oldest pending age and dead records: exact numbers."""
    from embedding_tasks import status as statuses
    from embedding_tasks.store.connection import open_store

    with open_store() as store:
        rows = statuses.of(store, name)
        for row in rows:
            row["dead_errors"] = statuses.dead_errors(
                store, row["use_case"], row["model_version"]
            )
            row["index"] = statuses.index_of(
                store, row["use_case"], row["feature"], row["model_version"]
            )
    if name and not rows:
        use_case.path_of(name)
    if as_json:
        terminal.print_json(rows)
        return
    if not rows:
        terminal.say(f"nothing has run yet: embedline run {name or 'NAME'}")
        return
    for row in rows:
        _print_status(row)


def _print_status(row: dict[str, Any]) -> None:
    name = row["use_case"]
    if row["feature"] != use_case.ONE_FEATURE:
        name += f" {row['feature']}"
    head = f"{name}, model version {row['model_version']} ({row['state']})"
    terminal.say(f"[bold]{head}[/bold]: {row['coverage']:.2%} covered")
    counts = ("wanted", "stored", "pending", "leased", "retrying", "dead", "skipped")
    numbers = [f"{row[c]} {c}" for c in counts]
    numbers += [f"{row['paused']} paused"] if row["paused"] else []
    if awaiting := row["awaiting_switch"]:
        numbers.append(f"{awaiting} await the switch to a fresh table")
    terminal.say("  " + ", ".join(numbers))
    if row["oldest_pending_age"]:
        terminal.say(f"  oldest pending since {row['oldest_pending_age']}")
    if row["index"]:
        terminal.say(f"  {_searched(row['index'])}")
    for dead in row["dead_errors"]:
        told = f"{dead['records']} dead: {dead['error']}; e.g. key {dead['key']}"
        terminal.say(f"  [red]{escape(told)}[/red]")
    for what in ("deletes", "labels"):
        if withheld := row[f"{what}_withheld"]:
            terminal.say(f"  [red]{withheld} {what} withheld by the delete guard[/red]")
    if row["held_back"]:
        terminal.say(f"  {escape(_held_back(row['held_back']))}")
    last = f"last run {row['last_run_kind'] or ''} {row['last_run_state'] or 'never'}"
    success = terminal.plain(row["last_success"]) or "never"
    terminal.say(f"  {last}; last success {success}")
    if row["last_run_error"]:
        terminal.say(f"  [red]{escape(row['last_run_error'])}[/red]")


def _searched(index: dict[str, Any]) -> str:
    if index["is_valid"] is None:
        return "searched exactly, without an index"
    if not index["is_valid"]:
        return f"searched exactly: index {index['index']} is not complete"
    size = f"{index['bytes'] / 2**20:.0f} MiB"
    told = f"searched through index {index['index']}, {size}"
    if index["recall"] is not None:
        told += (
            f", recall@{index['k']} {index['recall']:.3f} at ef_search "
            f"{index['ef_search']}"
        )
    return told


def _held_back(held: dict[str, Any]) -> str:
    """What the last sync saw in the source."""
    who = "a transaction that had ended when it was looked for"
    if gid := held.get("prepared"):
        who = f"the prepared transaction {gid!r}"
    elif pid := held.get("pid"):
        who = f"process {pid}"
    facts = [
        f"{name} {held[name]}"
        for name in ("user", "application", "database", "state", "since")
        if name in held
    ]
    return (
        f"held back by {', '.join([who, *facts])}: the next sync reads again what was "
        f"written since ({held['transactions']} transaction ids)"
    )


@app.command()
def explain(
    name: Name, key: Key, feature: Feature = None, as_json: AsJson = False
) -> None:
    """Why this record is, or is not, in the store."""
    from embedding_tasks import status as statuses
    from embedding_tasks.store.connection import open_store

    with open_store() as store:
        facts = statuses.explain(store, use_case.find(name), key, feature=feature)
    if as_json:
        terminal.print_json(facts)
        return
    terminal.say(f"{name} {key}: [bold]{escape(facts.pop('verdict'))}[/bold]")
    for fact, value in facts.items():
        if fact not in ("use_case", "key") and value not in (None, []):
            terminal.say(f"  {fact}: {escape(terminal.plain(value))}")
