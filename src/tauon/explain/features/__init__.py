"""Features of a table as a person knows them."""

__all__: list[str] = []
