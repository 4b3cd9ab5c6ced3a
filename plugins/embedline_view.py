"""The page "Embeddings" in Airflow's menu: how every use case stands, and a search box.

It reads the store's view and functions and nothing else. Airflow leaves plugin routes
open to anybody, so the whole app depends on a signed-in user: 401 without.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

from airflow.api_fastapi.core_api.security import get_user
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

from embedding_tasks import search, status
from embedding_tasks.encoders import Encoder
from embedding_tasks.errors import EmbedlineError, TransientError
from embedding_tasks.store.connection import open_store
from embedding_tasks.store.versions import ModelVersion
from embedline_airflow import connection

PREFIX = "/embedline"
MODELS_KEPT = 2

templates = Jinja2Templates(Path(__file__).parent / "templates")
app = FastAPI(
    title="Embedline",
    dependencies=[Depends(get_user)],
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)


@app.get("/", response_class=HTMLResponse)
def page(
    request: Request,
    use_case: str | None = None,
    q: str = Query("", max_length=10_000),
    by: str = Query("text", pattern="^(text|key)$"),
    k: int = Query(10, ge=1, le=100),
) -> HTMLResponse:
    facts: dict[str, Any] = {
        "use_case": use_case,
        "q": q,
        "by": by,
        "k": k,
        "rows": [],
        "monitored": {},
        "found": None,
        "error": None,
    }
    code = 200
    try:
        with open_store(connection) as store:
            facts["rows"] = status.of(store)
            facts["monitored"] = status.monitored(store)
            if use_case and q.strip() and by == "key":
                facts["found"] = search.by_key(store, use_case, q.strip(), k)
            elif use_case and q.strip():
                facts["found"] = search.by_text(
                    store, use_case, q, k, encoder_for=_encoder
                )
    except EmbedlineError as error:
        facts["error"] = str(error)
        code = 503 if isinstance(error, TransientError) else 400
    return templates.TemplateResponse(request, "embedline.html", facts, code)


@app.get("/monitor/{use_case}", response_class=HTMLResponse)
def monitored(use_case: str) -> HTMLResponse:
    """What monitoring found the last time, with charts."""
    from embedding_tasks.monitoring import html, report

    try:
        with open_store(connection) as store:
            return HTMLResponse(html.page(store, report.stored(store, use_case)))
    except EmbedlineError as error:
        code = 503 if isinstance(error, TransientError) else 400
        return HTMLResponse(escape(str(error)), code)


_encoders: dict[int, Encoder] = {}
_loading = Lock()


def _encoder(version: ModelVersion) -> Encoder:
    """Loaded at the first search by text, and the last two kept: the API server pays
    for a model only when somebody searches."""
    with _loading:
        if version.id not in _encoders:
            while len(_encoders) >= MODELS_KEPT:
                _encoders.pop(next(iter(_encoders)))
            _encoders[version.id] = search.encoder_of(
                version, device="cpu", resolve=connection
            )
        return _encoders[version.id]


class EmbedlineView(AirflowPlugin):
    name = "embedline"
    fastapi_apps = [  # noqa: RUF012 (Airflow's own declaration)
        {"app": app, "url_prefix": PREFIX, "name": "Embedline"}
    ]
    external_views = [  # noqa: RUF012
        {
            "name": "Embeddings",
            "href": f"{PREFIX.removeprefix('/')}/",
            "destination": "nav",
            "url_route": "embeddings",
            "category": "browse",
        }
    ]
