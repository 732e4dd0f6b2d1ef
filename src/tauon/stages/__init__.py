"""What a run does, stage by stage: one table of stages, the engine that works through it, and one thin file a stage.

`table` says what stages there are, `engine` does them, `context` is what they share, `extensions` changes data or training without being a stage.
"""

__all__: list[str] = []
