"""A stage from outside, as the table of stages takes it: the verb `tauon boundary`, the section `boundary:`, a part of the report.

This file is imported by `tauon --help`, so it imports nothing heavy; the stage itself is in `boundary.py`.
"""

from tauon.stages.table import Stage

BOUNDARY = Stage(
    "boundary",
    run="toy_plugin.boundary:boundary_stage",
    help="Find where the model changes its mind, along a line between the two classes.",
    config="toy_plugin.boundary:BoundaryConfig",
    reads=("boundary",),
    inputs=("train",),
    writes=("boundary.json",),
    report="toy_plugin.boundary:section",
)
