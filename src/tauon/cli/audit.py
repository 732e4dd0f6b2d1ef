"""`tauon audit RUN`: attack a trained model, and compare what it reveals with what its privacy guarantee allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tauon.cli.show import Show, pick_show

__all__ = ["audit_command"]

ABOUT = """
\b
  tauon audit runs/mine                       attacks on the trained model alone; takes seconds
  tauon audit runs/mine --shadows 16          also with 16 shadow models, trained here first (resumes if stopped)
"""


@click.command("audit", epilog=ABOUT)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--shadows",
    type=click.IntRange(0, 512),
    default=0,
    show_default=True,
    help="Number of shadow models for the likelihood-ratio attack; even.",
)
@click.option(
    "--examples",
    type=click.IntRange(10),
    default=10_000,
    show_default=True,
    help="Most members, and most held-out examples, to attack.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 0.9999),
    default=0.95,
    show_default=True,
    help="Confidence level of the intervals and tests.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed for drawing examples, pairs and halves.")
@click.option("--slices/--no-slices", default=True, help="Also report each class separately.")
@click.option("--quiet", "-q", is_flag=True, help="Print only the result.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, for scripts.")
def audit_command(
    run: Path, shadows: int, examples: int, confidence: float, seed: int, slices: bool, quiet: bool, as_json: bool
) -> None:  # fmt: skip
    """Attack the trained model in the folder RUN, and compare what the attacks prove with the privacy guarantee.

    Writes audit.json and adds a section to report.html. The exit code is 9 if the attacks refute the guarantee of a private run.
    """
    from tauon.artifacts import read_json
    from tauon.config import parse
    from tauon.privacy.audit import AuditConfig
    from tauon.stages.audit import GuaranteeRefuted, audit_run

    if shadows % 2:
        raise click.UsageError(
            f"--shadows {shadows} is odd: shadow models are trained in pairs, so that each example is in half of them. Give an even number"
        )
    settings = {"shadows": shadows, "examples": examples, "confidence": confidence, "seed": seed, "slices": slices}
    show = pick_show(quiet, as_json)
    refuted: GuaranteeRefuted | None = None
    with show:
        try:
            record = audit_run(run, parse(AuditConfig, settings), on_event=show.on_event)
        except GuaranteeRefuted as err:
            refuted, record = err, read_json(run / "audit.json")
        if as_json:
            show.on_event("audit", **{k: v for k, v in record.items() if k not in ("attacks", "format", "time")})
    if not as_json:
        print_figures(show, record)
    if refuted is not None:
        raise refuted


def print_figures(show: Show, record: dict[str, Any]) -> None:
    """Print a row for each attack, a line for each secret, and the summary."""
    from rich.table import Table

    rates = record["attacks"][0]["rates"]
    table = Table(box=None, padding=(0, 2))
    for head in ("attack", "AUC", f"{record['confidence']:.0%} interval", *(f"members found at {r['fpr']:.1%} FPR" for r in rates)):
        table.add_column(head, justify="left" if head == "attack" else "right")
    for a in record["attacks"] + ([record["canaries"]["attack"]] if "attack" in (record.get("canaries") or {}) else []):
        shares = [f"{r['value']:.2%} ({r['low']:.2%} to {r['high']:.2%})" for r in a["rates"]]
        table.add_row(a["name"].replace("_", " "), f"{a['auc']:.4f}", f"{a['auc_low']:.4f} to {a['auc_high']:.4f}", *shares)
    show.console.print(table)
    for secret in (record.get("canaries") or {}).get("secrets", [])[:20]:
        decoding = ", ".join(how for how in ("greedy", "beam") if secret[how])
        inserted = f"inserted {secret['repeats']} times" if secret["included"] else "not inserted"
        extracted = f"extracted ({decoding})" if decoding else "not extracted"
        exposure = f"exposure {secret['exposure']:.1f} of {secret['most']:.1f} bits"
        show.console.print(f"  secret {secret['name']}: {inserted}, {exposure}, {extracted}", markup=False)
    show.console.print(record["summary"], markup=False)
