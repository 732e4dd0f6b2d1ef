"""Schemathesis against the server's own OpenAPI document: no 500, and no answer that the document does not allow."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest

pytest.importorskip("schemathesis")

SECONDS = 20.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "pictures", "language", "chat"])
def test_generated_requests_get_what_the_document_allows(serve: Any, kind: str) -> None:
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    app = serve(kind, most_tokens=4).app
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [o.ok() for o in schema.get_all_operations()]
    for operation in operations:
        statuses = asked(operation, checks, SECONDS / len(operations))
        print(f"{kind} {operation.label}: {len(statuses)} requests, {sorted(set(statuses))}")
        assert statuses and not any(s >= 500 for s in statuses), operation.label


def asked(operation: Any, checks: list[Any], seconds: float) -> list[int]:
    """Send generated requests for some seconds; return their statuses."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    end = time.monotonic() + seconds
    statuses: list[int] = []

    @seed(0)
    @settings(
        max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        if time.monotonic() > end:
            return
        with warnings.catch_warnings(action="ignore"):
            response = case.call()
        statuses.append(response.status_code)
        case.validate_response(response, checks=checks)

    ask()
    return statuses
