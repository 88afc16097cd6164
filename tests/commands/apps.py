"""Sources of applications that the commands are tried on; one for each framework where it matters."""

FASTAPI = """
from fastapi import FastAPI
from usagekeeper import *
from usagekeeper.asgi import UsageMiddleware

def make(store="sqlite:///usage.db", **options):
    app = FastAPI(openapi_url=None)
    app.add_middleware(UsageMiddleware, store=store, **options)

    @app.get("/api/items/{item_id}")
    async def item(item_id: int): ...

    @app.post("/api/reports")
    async def report(): ...

    @app.get("/health")
    async def health(): ...

    return app
"""

FLASK = """
from flask import Flask
from usagekeeper import *
from usagekeeper.flask import UsageMiddleware

def make(store="sqlite:///usage.db", **options):
    app = Flask("shop", static_folder=None)
    UsageMiddleware(app, store=store, **options)

    @app.get("/api/items/<int:item_id>")
    def item(item_id): ...

    @app.post("/api/reports")
    def report(): ...

    @app.get("/health")
    def health(): ...

    return app
"""

GOOD = """
app = make(
    whitelist=["GET /health"],
    policies=[
        Policy("customers", routes=["/api/*"], identity=Header("X-Customer"), limits=["2/minute"]),
        Policy("address", identity=ClientAddress(), limits=["300/minute"]),
    ],
)
"""
