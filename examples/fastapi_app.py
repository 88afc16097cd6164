"""A FastAPI application with a limit: uvicorn fastapi_app:app"""

from fastapi import FastAPI

from usagekeeper import Header, Policy
from usagekeeper.asgi import UsageMiddleware
from usagekeeper.fastapi import Usage

app = FastAPI()
app.add_middleware(
    UsageMiddleware,
    routes=["*"],
    whitelist=["GET /docs", "GET /openapi.json"],
    policies=[Policy("default", identity=Header("X-Customer"), limits=["5/minute"])],
)


@app.get("/api/items/{item_id}")
async def item(item_id: int, usage: Usage) -> dict[str, object]:
    return {"id": item_id, "left": usage.remaining}
