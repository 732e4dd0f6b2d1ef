"""What the rounds of a federation cost its sites' privacy (`federate.privacy`): reserved in the ledger before the first round, settled at the end or at
a stop, recorded in `privacy.json`.

The order, with what is left behind. After a kill the same command continues from there, and charges nothing twice:

    reserve      in the ledger: all rounds of the run, less those that an earlier reservation of it settled
    number       the manifest names ledger, data and reservation
    rounds       `federate/released.json` counts each round before its result is used
    settle       in the ledger, by the rounds that were released; also after an error or a signal. A run that resumes then reserves the rest

A round that is lost to a kill is not done again: its privacy is spent, and the run has one round less. So no run releases more rounds than its noise was
calibrated for.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauon.artifacts import read_json, write_json
from tauon.errors import PrivacyError, Problem, RecipeError, RunError
from tauon.federated.config import FederateConfig, UpdatePrivacyConfig
from tauon.federated.network import ServeAt
from tauon.federated.private import (
    UpdatePrivacy,
    explain_privacy,
    private_layout,
    reserve_rounds,
    settle_rounds,
    site_guarantee,
    site_releases,
)
from tauon.federated.private.account import Against, accountant_of
from tauon.federated.protection import update_privacy
from tauon.federated.updates import travelling
from tauon.plan import Derived
from tauon.privacy.accounting import Guarantee, Release
from tauon.privacy.charge import RELEASED, original_of, place_of
from tauon.privacy.ledger import Entry, Ledger, Owner, data_identity, ledger_for, settlement
from tauon.train import TrainJob

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["RoundsAccount"]


class RoundsAccount:
    """The privacy account of one federated run.

    Args:
        ctx: of the run.
        config: its section, with `privacy`.
        end: the coordinator's address; None: simulated sites.
        sites: sites that may take part.
    """

    def __init__(self, ctx: Context, config: FederateConfig, end: ServeAt | None, sites: int) -> None:
        found = update_privacy(config, sites)
        assert found is not None
        assert config.privacy is not None
        self.ctx, self.config, self.end, self.privacy = ctx, config, end, found
        self.settings: UpdatePrivacyConfig = config.privacy
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.ledger: Ledger | None = None
        self.reservation: Entry | None = None
        _ = (self.settings.ledger, self.settings.budget and (self.settings.budget.epsilon, self.settings.budget.delta))

    @property
    def against(self) -> Against:
        """Whom the guarantee is against."""
        return "model" if self.privacy.mode == "central" else "coordinator"

    def derived(self) -> list[Derived]:
        """The noise and what it costs, for the plan."""
        z, target = self.privacy.noise_multiplier, self.settings.target_epsilon
        if target is not None:
            why = f"the least for epsilon {target:g} at delta {self.settings.delta:g} after {self.config.rounds} rounds"
            return [Derived("federate.privacy.noise_multiplier", f"{z:.4g}", why)]
        if self.privacy.mode == "distributed":  # its steps are known when the model is built
            return []
        spent = site_guarantee(self.privacy, self.config.rounds, self.settings.delta, against=self.against)
        return [
            Derived("federate.privacy", f"epsilon {spent.epsilon:.4g}", f"for one site, after {self.config.rounds} rounds, noise {z:g}")
        ]

    def releases(self, rounds: int) -> list[Release]:
        """Return what so many rounds release of a site."""
        return site_releases(self.privacy, rounds, against=self.against, layout=self._layout())

    def guarantee(self, rounds: int) -> Guarantee:
        """Return the guarantee for one site after so many rounds."""
        return site_guarantee(self.privacy, rounds, self.settings.delta, against=self.against, layout=self._layout())

    def _layout(self) -> Any:
        return private_layout(self.shapes, self.privacy, self.privacy.sites) if self.privacy.mode == "distributed" else None

    # ------------------------------------------------------------------------------------------ rounds that were released

    @property
    def _path(self) -> Path:
        return self.ctx.run.folder / RELEASED

    def _counts(self) -> dict[str, int]:
        """Rounds that were released, and those of them that earlier reservations of this run settled."""
        return {"rounds": 0, "settled": 0} | (read_json(self._path) if self._path.is_file() else {})

    def released(self, rounds: int) -> None:
        """Store the number of rounds that were released, before the result of the last is used."""
        write_json(self._path, self._counts() | {"rounds": rounds})

    # ------------------------------------------------------------------------------------------ the ledger

    def open(self, job: TrainJob, summation: Any) -> None:
        """Before the first round, also of a run that resumes: reserve what the run may still release, and let `summation` count. Raises
        `PrivacyError` over budget.
        """
        self.shapes = {n: tuple(t.shape) for n, t in travelling(job.model).items()}
        self._path.parent.mkdir(exist_ok=True)
        most, done = self.config.rounds, self._counts()["rounds"]
        summation.released, summation.most = max(done, summation.released), most
        left = most - summation.released
        if job.step + left < job.policy.total_steps:
            self._note(
                f"{job.policy.total_steps - job.step - left} rounds were lost to an interruption; their privacy is spent, so they are not done again"
            )
            job.policy = replace(job.policy, total_steps=job.step + left)
        if not left and not job.step:
            raise PrivacyError(
                f"{self.ctx.run.folder}: the results of all {most} rounds were released, but no model was saved. Start over: --fresh"
            )
        if left:
            self._reserve()

        def count(rounds: int) -> None:
            self.released(rounds)
            job.policy = replace(job.policy, total_steps=min(job.policy.total_steps, job.step + 1 + most - rounds))

        summation.on_release = count

    def _reserve(self) -> None:
        ctx, before = self.ctx, self.ctx.run.manifest().get("privacy") or {}
        root, name = place_of(ctx.run)
        data = self.identity()
        self._refuse_another(before, data)
        self.ledger, note = ledger_for(
            data, root, said=self.settings.ledger, recorded=before.get("ledger") if before.get("data") == data else None
        )
        entries, accountant = self.ledger.entries(), accountant_of(self.privacy)
        if self.settings.budget is None and not entries:
            self.ledger = None
            self._note(
                "privacy budget: none: this federation has no ledger, so its other runs are not counted (federate.privacy.budget opens one)"
            )
            return
        if note:
            self._note(f"privacy budget: {note}")
        _refuse_another_account(self.ledger, entries, self.privacy, accountant)
        self.reservation = _of(entries, before.get("key"))
        if self.reservation is None or settlement(entries, self.reservation.number) is not None:
            counts, budget = self._counts(), self.settings.budget
            limits = (budget.epsilon, budget.delta) if budget is not None else _budget(entries)
            owner = Owner(secrets.token_hex(32), ctx.recipe_fingerprint("train"), os.path.realpath(ctx.run.folder), unused=True)
            before |= {"ledger": str(self.ledger.folder.resolve()), "data": data, "key": owner.key}
            before.pop("reservation", None)
            write_json(self._path, counts | {"settled": counts["rounds"]})
            ctx.run.update_manifest(privacy=before)  # so that the reservation is found after a kill
            self.reservation = reserve_rounds(
                self.ledger, name, self.releases(self.config.rounds - counts["rounds"]), budget=limits, sites=self.privacy.sites,
                accountant=accountant, owner=owner,
            )  # fmt: skip
        ctx.run.update_manifest(privacy=before | {"reservation": self.reservation.number})
        self._note(f"privacy budget of a site: {self.standing()}")

    def _refuse_another(self, before: dict[str, Any], data: str) -> None:
        """Raise `RunError` if an open reservation of this run is for other sites, or belongs to the run that this one is a copy of."""
        folder = self.ctx.run.folder
        if (original := original_of(self.ctx.run)) is not None:
            raise RunError(f"{folder} is a copy of {original}, with its reservation. Resume the original, or start over here with --fresh.")
        if before.get("data") in (None, data) or "ledger" not in before:
            return
        ledger = Ledger(before["ledger"], before["data"])
        entries = ledger.entries() if ledger.exists() else []
        made = _of(entries, before.get("key"))
        if made is not None and settlement(entries, made.number) is None:
            raise RunError(
                f"{folder}: the number of sites, the authority of the federation or the data changed since this run reserved its privacy budget. "
                "Restore them, or start over with --fresh, which settles the rounds that were done."
            )

    def identity(self) -> str:
        """Identity of the federation in the ledger. Real sites: those that its authority (`ca.crt`) lets in, so that a site that comes or goes does not
        open a new account. Simulated ones: so many parts of these data.
        """
        if self.end is not None:
            return hashlib.sha256(b"federation/" + (self.end.keys / "ca.crt").read_bytes()).hexdigest()
        data = data_identity(self.ctx.data.source)
        return hashlib.sha256(f"federation/simulated/{self.privacy.sites}/{data}".encode()).hexdigest()

    def standing(self) -> str:
        """The budget in words, with this run."""
        assert self.ledger is not None
        found = self.ledger.standing()
        amount = f"epsilon {found.reserved:.3g} of {found.budget[0]:g} at delta {found.budget[1]:g} with this run"
        return f"{amount}, ledger {self.ledger.data[:12]} in {self.ledger.folder}"

    def settle(self) -> None:
        """Replace the reservation by what was released since it was made. Repeated, it changes nothing."""
        if self.ledger is None or self.reservation is None:
            return
        counts = self._counts()
        settle_rounds(self.ledger, self.reservation, self.releases(counts["rounds"] - counts["settled"]))
        self.reservation = None

    # ------------------------------------------------------------------------------------------ records

    def record(self, clip_norm: float) -> dict[str, Any] | None:
        """Write `privacy.json`; return what was spent, for the record of the sites. None if nothing was released."""
        rounds = self._counts()["rounds"]
        if not rounds or not self.shapes:
            return None
        spent = self.guarantee(rounds)
        settings = {
            "steps": rounds, "units": self.privacy.sites, "sampling": self.privacy.sampling, "noise_multiplier": self.privacy.noise_multiplier,
            "noise": self.privacy.mode, "clipping": {"kind": "update", "norm": clip_norm} | ({"adaptive": True} if self.settings.adaptive else {}),
        }  # fmt: skip
        write_json(self.ctx.run.folder / "privacy.json", {"guarantee": spent.to_json(), "generator": "secure"} | settings)
        promise = {k: getattr(spent, k) for k in ("epsilon", "delta", "unit", "neighbouring", "accountant")}
        self.ctx.run.update_manifest(privacy=(self.ctx.run.manifest().get("privacy") or {}) | promise)
        found = {
            "guarantee": spent.to_json(),
            "sentence": spent.sentence(),
            "rounds": rounds,
            "target_epsilon": self.settings.target_epsilon,
        }
        words = explain_privacy(replace(self.privacy, clip_norm=clip_norm), spent, against=self.against)
        found["words"] = [line for line in words.splitlines() if not line.startswith("- ")][:-1]
        return found | {"budget": None if self.ledger is None else self.standing()}

    def _note(self, message: str) -> None:
        self.ctx.on_event("note", message=message)


def _of(entries: list[Entry], key: str | None) -> Entry | None:
    """The reservation with this key."""
    return next((e for e in entries if e.action == "reserve" and key is not None and e.values.get("key") == key), None)


def _budget(entries: list[Entry]) -> tuple[float, float]:
    found = entries[0].values["budget"]
    return float(found["epsilon"]), float(found["delta"])


def _refuse_another_account(ledger: Ledger, entries: list[Entry], privacy: UpdatePrivacy, accountant: str) -> None:
    """Raise `RecipeError` if the account does not count sites, or its accountant is not proven for this noise."""
    first = entries[0].values if entries else {"unit": "site", "accountant": accountant}
    if first["unit"] != "site":
        raise RecipeError(
            [Problem("federate.privacy.ledger", f"{ledger.path} counts one {first['unit']}, not one site. Use another folder.")]
        )
    if privacy.mode == "distributed" and first["accountant"] == "pld":
        message = (
            f"{ledger.path} is accounted by pld, which is not proven for sums of discrete Gaussians. Use another folder, or another mode."
        )
        raise RecipeError([Problem("federate.privacy.ledger", message)])
