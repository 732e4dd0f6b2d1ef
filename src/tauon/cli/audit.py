"""`tauon audit RUN`: what a trained model tells of its data, beside what was promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tauon.cli.show import Show, pick_show

__all__ = ["audit_command"]

ABOUT = """
\b
  tauon audit runs/mine                       attacks on the model as it is; seconds
  tauon audit runs/mine --shadows 16          and against 16 reference models, trained here first (they resume)
"""


@click.command("audit", epilog=ABOUT)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--shadows",
    type=click.IntRange(0, 512),
    default=0,
    show_default=True,
    help="Reference models for the likelihood-ratio attack; an even number.",
)
@click.option(
    "--examples",
    type=click.IntRange(10),
    default=10_000,
    show_default=True,
    help="Members, and held-out examples, to look at: at most so many.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 0.9999),
    default=0.95,
    show_default=True,
    help="Confidence level of the intervals and tests.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which examples, pairs and halves are drawn.")
@click.option("--slices/--no-slices", default=True, help="Also each class by itself.")
@click.option("--quiet", "-q", is_flag=True, help="Print the result and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for scripts.")
def audit_command(
    run: Path, shadows: int, examples: int, confidence: float, seed: int, slices: bool, quiet: bool, as_json: bool
) -> None:  # fmt: skip
    """Attack the trained model in the folder RUN, and say what was proven beside what was promised.

    Writes audit.json and adds a section to report.html. Ends with exit code 9 where the guarantee of a private run is refuted.
    """
    from tauon.artifacts import read_json
    from tauon.config import parse
    from tauon.privacy.audit import AuditConfig
    from tauon.stages.audit import GuaranteeRefuted, audit_run

    if shadows % 2:
        raise click.UsageError(
            f"--shadows {shadows} is odd: halves come in pairs, so that each example is in half of them. Give an even number"
        )
    asked = {"shadows": shadows, "examples": examples, "confidence": confidence, "seed": seed, "slices": slices}
    show = pick_show(quiet, as_json)
    refuted: GuaranteeRefuted | None = None
    with show:
        try:
            record = audit_run(run, parse(AuditConfig, asked), on_event=show.on_event)
        except GuaranteeRefuted as err:
            refuted, record = err, read_json(run / "audit.json")
        if as_json:
            show.on_event("audit", **{k: v for k, v in record.items() if k not in ("attacks", "format", "time")})
    if not as_json:
        print_figures(show, record)
    if refuted is not None:
        raise refuted


def print_figures(show: Show, record: dict[str, Any]) -> None:
    """A line an attack, a line a proof, and the sentence."""
    from rich.table import Table

    rates = record["attacks"][0]["rates"]
    table = Table(box=None, padding=(0, 2))
    for head in ("attack", "area", f"{record['confidence']:.0%} interval", *(f"members found at {r['fpr']:.1%} FPR" for r in rates)):
        table.add_column(head, justify="left" if head == "attack" else "right")
    for a in record["attacks"] + ([record["canaries"]["attack"]] if "attack" in (record.get("canaries") or {}) else []):
        found = [f"{r['value']:.2%} ({r['low']:.2%} to {r['high']:.2%})" for r in a["rates"]]
        table.add_row(a["name"].replace("_", " "), f"{a['auc']:.4f}", f"{a['auc_low']:.4f} to {a['auc_high']:.4f}", *found)
    show.console.print(table)
    for secret in (record.get("canaries") or {}).get("secrets", [])[:20]:
        told = ", ".join(how for how in ("greedy", "beam") if secret[how])
        there = f"{secret['repeats']} times" if secret["included"] else "not there"
        said = f"told ({told})" if told else "not told"
        show.console.print(
            f"  secret {secret['name']}: {there}, exposure {secret['exposure']:.1f} of {secret['most']:.1f} bits, {said}", markup=False
        )
    show.console.print(record["summary"], markup=False)
