"""The sample API: one policy, a route that costs more, a stream; counters and records in files of one folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

from usagekeeper import Header, Policy, Request, current_usage
from usagekeeper.asgi import UsageMiddleware
from usagekeeper.demo import LIMIT, REPORT_COST, store_url


def cost(request: Request) -> int:
    """A report costs as much as three other requests."""
    return REPORT_COST if request.method == "POST" else 1


def build(folder: Path) -> FastAPI:
    """The application, with its files in *folder*."""
    app = FastAPI(title="Usagekeeper's sample API")
    app.add_middleware(
        UsageMiddleware,
        application="demo",
        routes=["/api/*"],
        whitelist=["GET /api/health"],
        policies=[Policy("customers", identity=Header("X-Customer"), limits=[LIMIT], cost=cost)],
        store=store_url(folder),
    )

    @app.get("/api/health")
    async def health() -> dict[str, Any]:
        return {"ok": True}

    @app.get("/api/items/{item_id}")
    async def item(item_id: int) -> dict[str, Any]:
        if item_id > 99:
            raise HTTPException(404, "There are 99 items.")
        return {"id": item_id, "left": current_usage().remaining}

    @app.post("/api/reports")
    async def report() -> dict[str, Any]:
        usage = current_usage()
        usage.note(pages=3)
        return {"pages": 3, "left": usage.remaining}

    @app.get("/api/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(_lines(), media_type="text/plain")

    return app


async def _lines() -> AsyncIterator[str]:
    for number in range(1, 6):
        yield f"line {number} of 5\n"
        await asyncio.sleep(0.02)
