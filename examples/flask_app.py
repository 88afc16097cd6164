"""A Flask application with a limit: gunicorn flask_app:app"""

from flask import Flask

from usagekeeper import Header, Policy, current_usage
from usagekeeper.flask import UsageMiddleware

app = Flask(__name__)
middleware = UsageMiddleware(
    routes=["*"],
    whitelist=["GET /static/*"],
    policies=[Policy("default", identity=Header("X-Customer"), limits=["5/minute"])],
)
middleware(app)


@app.get("/api/items/<int:item_id>")
def item(item_id: int) -> dict[str, object]:
    return {"id": item_id, "left": current_usage().remaining}
