"""LitServe with a model that does nothing: a file of its own, because its processes import the model's class by name."""

import argparse
from typing import Any

import litserve as ls


class Nothing(ls.LitAPI):  # type: ignore[misc]
    def setup(self, device: Any) -> None:
        pass

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads an annotation as a schema
        return request["rows"]

    def predict(self, rows: Any) -> Any:
        return [{"prediction": 0.5} for _ in rows]

    def encode_response(self, output: Any) -> Any:
        return {"predictions": output, "model": "nothing", "version": "0"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve")
    parser.add_argument("--port", type=int)
    ls.LitServer(Nothing(), accelerator="cpu").run(port=parser.parse_args().port, generate_client_file=False, log_level="error")
