"""Serving: a trained model behind HTTP. `tauon serve RUN` answers `/predict` for data of every kind, and OpenAI's API for language models.

    from tauon.serve import build_app, open_server
    app = build_app(open_server(Path("runs/loans"), ServeSettings()))       # an ASGI application: FastAPI

Computes nothing itself: predictions are those of `tauon.predict`, texts those of `tauon.generate`.
"""

from tauon.serve.app import build_app
from tauon.serve.errors import HttpError
from tauon.serve.loading import open_server
from tauon.serve.run import run_server
from tauon.serve.settings import ServeSettings

__all__ = ["HttpError", "ServeSettings", "build_app", "open_server", "run_server"]
