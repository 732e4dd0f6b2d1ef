"""Words in column names that say whose a row is. Does not depend on values."""

from __future__ import annotations

import re

__all__ = ["OF_IDS", "PEOPLE", "THINGS", "words_of"]

PEOPLE = frozenset([
    "patient", "subject", "participant", "person", "user", "customer", "client", "member", "speaker", "author",
    "writer", "reviewer", "household", "family", "student", "pupil", "player", "donor", "employee", "respondent",
    "child", "mother", "animal", "mouse", "rat", "dog", "cow", "worker", "driver", "borrower", "applicant",
    "account", "session",
])  # fmt: skip
THINGS = frozenset([
    "device", "sensor", "machine", "unit", "engine", "track", "store", "shop", "product", "item", "site", "station",
    "school", "hospital", "clinic", "case", "batch", "plant", "well",
])  # fmt: skip
OF_IDS = frozenset(["id", "no", "nr", "number", "num", "code", "key", "name", "uid", "uuid", "hash", "index", "the"])


def words_of(name: str) -> list[str]:
    """Return the words of a column name: patientId and patient_id are patient, id."""
    return [w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]
