"""MLflow's own server behind basic authentication: python mlflow_server.py FOLDER USER:PASSWORD. Prints its port."""

import base64
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any


def main(folder: str, login: str) -> None:
    """Serve until the process is ended. The database and the artifacts lie in ``folder``."""
    os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder}/server.db"
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
    os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = f"{folder}/artifacts"
    os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
    from mlflow.server import app
    from werkzeug.serving import make_server

    wanted = "Basic " + base64.b64encode(login.encode()).decode()

    def guarded(environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_AUTHORIZATION") == wanted:
            return app(environ, respond)
        respond("401 Unauthorized", [("Content-Length", "0")])
        return [b""]

    server = make_server("127.0.0.1", 0, guarded, threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:3])
