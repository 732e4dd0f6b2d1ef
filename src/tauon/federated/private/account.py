"""What rounds with private updates cost: their releases, the guarantee, the guarantee in words, and the charge to the ledger.

Who the guarantee is against:

    model        anyone who sees the models of all rounds (sites included), but not what the coordinator receives
    coordinator  the coordinator, which also sees what it receives: a sum, or single vectors with local noise
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from tauon.errors import PrivacyError
from tauon.federated.private.discrete import sampler_slack
from tauon.federated.private.distributed import effective_multiplier
from tauon.federated.private.settings import UpdatePrivacy
from tauon.federated.secagg import Layout, PinnedKeys
from tauon.privacy.accounting import Accountant, Guarantee, Release, calibrate, guarantee, refuse_delta
from tauon.privacy.ledger import Entry, Ledger, Opening, Owner

__all__ = [
    "Against",
    "accountant_of",
    "calibrate_noise",
    "explain_privacy",
    "explain_records",
    "federation_identity",
    "reserve_rounds",
    "settle_rounds",
    "site_guarantee",
    "site_releases",
]

Against = Literal["model", "coordinator"]
UNIT = "site"


def site_releases(privacy: UpdatePrivacy, rounds: int, *, against: Against = "model", layout: Layout | None = None) -> list[Release]:
    """Return the releases of `rounds` rounds, for one site.

    Args:
        privacy: settings.
        rounds: all rounds whose result left the coordinator, also one that was done again after a restart. Without sampling: those in which the
            site took part.
        against: whom the guarantee is against.
        layout: of the secure sum, for distributed noise: its steps enter the accounting.

    Raises:
        PrivacyError: no guarantee of this kind is given.

    >>> site_releases(UpdatePrivacy("central", 1.0, 2.0, sites=100, sampling="poisson", rate=0.1), 20)
    [Release(noise_multiplier=2.0, sampling='poisson', rate=0.1, count=20, known=None)]
    """
    z = privacy.noise_multiplier
    if rounds < 1:
        return []
    if privacy.mode == "central":
        if against == "coordinator":
            raise PrivacyError("central noise gives no guarantee against the coordinator, which adds it. Use distributed or local.")
        return [Release(z, privacy.sampling, privacy.rate, rounds)]
    if privacy.mode == "distributed":
        if layout is None:
            raise PrivacyError("distributed noise is accounted in the steps of the sum: give its layout")
        return [Release(effective_multiplier(layout, privacy), "full", 1.0, rounds)]
    # local: any two vectors of norm S are up to 2 S apart
    return [Release(z / 2, "full", 1.0, rounds)]


def site_guarantee(
    privacy: UpdatePrivacy, rounds: int, delta: float, *, against: Against = "model", layout: Layout | None = None,
    accountant: Accountant | None = None,
) -> Guarantee:  # fmt: skip
    """Return the guarantee for one site after `rounds` rounds (see `site_releases`).

    Args:
        privacy: settings.
        rounds: rounds released.
        delta: below 1 / sites.
        against: whom it is against.
        layout: of the secure sum, for distributed noise.
        accountant: None: `rdp` for fixed-size sampling and for distributed noise, for which the others are not proven, else `pld`.
    """
    if accountant == "pld" and accountant_of(privacy) == "rdp":
        raise PrivacyError("pld is not proven for fixed-size sampling of sites, nor for sums of discrete Gaussians. Set accountant rdp.")
    return guarantee(
        site_releases(privacy, rounds, against=against, layout=layout), delta, accountant=accountant or accountant_of(privacy), unit=UNIT,
        examples=privacy.sites, assumptions=_assumptions(privacy, against, layout), not_covered=NOT_COVERED,
    )  # fmt: skip


def calibrate_noise(
    privacy: UpdatePrivacy, rounds: int, *, target_epsilon: float, delta: float, accountant: Accountant | None = None
) -> UpdatePrivacy:
    """Return the settings with the least noise for which `rounds` rounds stay within `target_epsilon` at `delta`.

    Args:
        privacy: settings; their noise multiplier is replaced.
        rounds: most rounds that are released.
        target_epsilon: upper limit: local and distributed noise against the coordinator, central noise against those who see the models.
        delta: below 1 / sites.
        accountant: as for `site_guarantee`.

    >>> p = calibrate_noise(UpdatePrivacy("central", 1.0, 1.0, sites=50), 10, target_epsilon=4, delta=1e-3)
    >>> 3.9 < site_guarantee(p, 10, 1e-3).epsilon <= 4
    True
    """
    refuse_delta(delta, privacy.sites)
    half = 2.0 if privacy.mode == "local" else 1.0
    known = privacy.sampling if privacy.mode == "central" else "full"
    z = calibrate(
        lambda z: [Release(z / half, known, privacy.rate, rounds)], target_epsilon=target_epsilon, delta=delta,
        accountant=accountant or accountant_of(privacy),
    )  # fmt: skip
    return replace(privacy, noise_multiplier=z * (1 + 1e-9))


def accountant_of(privacy: UpdatePrivacy) -> Accountant:
    """Return the tightest accountant that is proven for the settings."""
    hardly_noised = privacy.noise_multiplier < 0.1  # an epsilon of hundreds, for which pld takes minutes
    return "rdp" if privacy.mode == "distributed" or privacy.sampling == "fixed-size" or hardly_noised else "pld"


NOT_COVERED = (
    "Settings chosen from results on the sites' data (learning rates, the clipping norm, the architecture).",
    "Statistics, vocabularies and schemas fitted on the sites' data without noise.",
    "What sites declare in clear when they join: that they take part, and their number of examples, if they declare it.",
    "Evaluation results of single sites; the number of sites N, the sampling rate and the number of rounds are public.",
    "Traffic: when a site answers, and how many bytes it sends.",
    "A person whose rows are at several sites: the guarantee is for all rows of one site.",
)
"""What the guarantee of a federated run does not count, for the report."""


def _assumptions(privacy: UpdatePrivacy, against: Against, layout: Layout | None) -> list[str]:
    if privacy.mode == "central":
        lines = [
            "The coordinator is trusted: it adds the noise, and keeps the noise and the sums without noise secret.",
            "Each update was clipped by the site, or by the coordinator, before it was summed.",
        ]
        if privacy.sampling != "full":
            lines.append("Who took part in a round is secret, except to the coordinator and the site itself.")
        return lines
    if privacy.mode == "local":
        return [
            "No other party is trusted. The site itself clips its update and adds the noise before it sends anything.",
            "Each round in which the site takes part is counted, without amplification by sampling. Any two updates are up to twice the clipping "
            "norm apart: the guarantee covers replacing all data of the site.",
        ]
    d = 0 if layout is None else layout.count - 1
    return [
        f"At least {privacy.contributors} sites whose values are in a sum follow the protocol and add their share of the noise; sites do not unmask a sum "
        f"of fewer than {privacy.fewest}. Sites that vanish after they sent their values have added their noise.",
        f"At most {privacy.colluders} sites work with the coordinator, which may break the rules of the protocol only as far as the sites' checks "
        "allow (docs/secure-aggregation.md); X25519, HKDF-SHA256, ChaCha20, AES-GCM and Ed25519 are secure.",
        "The noise is a sum of discrete Gaussians, accounted by Renyi divergence with the rounding to steps; reducing modulo 2^32 costs nothing. "
        f"The rounding inside the sampler adds at most {sampler_slack(d):.1g} to epsilon in each round.",
        "No amplification by sampling is counted: the coordinator knows who takes part.",
    ]


def explain_privacy(privacy: UpdatePrivacy, found: Guarantee, *, against: Against = "model") -> str:
    """Return the guarantee in plain words, with who is trusted with what."""
    rounds = sum(r.count for r in found.releases)
    odds = math.exp(min(found.epsilon, 700.0))
    who = {
        "model": "someone who sees the models of all rounds",
        "coordinator": "the coordinator, and someone who sees the models of all rounds",
    }[against]
    if privacy.mode == "local":
        who = "anyone, the coordinator included"
    elif privacy.mode == "distributed":
        who = "the coordinator, and anyone who sees the models of all rounds"
    trusted = {
        "central": "The coordinator is trusted with the updates (or, with secure aggregation, with their sum) and with adding the noise. The sites do "
        "not have to trust each other.",
        "local": "No one is trusted with an update: each site adds all of the noise itself. The price is the most noise of the three kinds.",
        "distributed": f"The coordinator is trusted with the noised sum only. Each site trusts that {privacy.contributors} sites of a sum add their share of "
        f"the noise, and that at most {privacy.colluders} others work with the coordinator.",
    }[privacy.mode]
    size = f"about {odds:.3g} times" if odds < 1000 else "more than 1,000 times"
    compared = "that its data were any other data" if privacy.mode == "local" else "that it had contributed nothing"
    lines = [
        f"Protected is one site, with all its rows. After {rounds} rounds, the guarantee is {found.sentence()}.",
        f"In words: whatever {who} concludes about a site, it would have concluded with at most {size} the odds had it been the case "
        f"{compared}, except with a probability of {found.delta:.2g}.",
        trusted,
        f"Each update counts with an L2 norm of at most {privacy.clip_norm:g}; the noise has a standard deviation of {privacy.noise_std():.4g} on each "
        "number of " + ("the sum." if privacy.mode != "local" else "each update."),
    ]
    if found.epsilon > 20:
        lines.append("An epsilon above 20 protects little. Take part in fewer rounds, have more sites, or add more noise.")
    return "\n".join([*lines, "It holds under these assumptions:", *(f"- {line}" for line in found.assumptions)])


def explain_records(by_site: Mapping[str, Guarantee]) -> str:
    """Return in plain words what each site guarantees to each of its records: the `privacy:` section of its own recipe, accounted by itself.

    Each site sends its `Guarantee` as JSON with its last answer; its epsilon does not depend on the other sites, whose rows are others.
    """
    lines = [f"- {name}: {found.sentence()}" for name, found in sorted(by_site.items())]
    worst = max(by_site.values(), key=lambda g: g.epsilon) if by_site else None
    if worst is None:
        return "No site trains with privacy for its single records."
    return "\n".join(
        [
            "Each site clips and noises the gradients of its own records, so that the guarantee holds against everyone outside the site, the coordinator "
            "included. It trusts no one but itself. A record that is at several sites has the sum of their epsilons at most.",
            *lines,
            f"The weakest guarantee of a site is epsilon {worst.epsilon:.3g} at delta {worst.delta:.2g}.",
        ]
    )


# ------------------------------------------------------------------------------------------------ the ledger


def federation_identity(sites: PinnedKeys | Mapping[str, bytes]) -> str:
    """Identity of a federation in the ledger: SHA-256 over the identity keys of its sites. The same sites are one data set, whatever they train."""
    return hashlib.sha256(b"".join(sorted(sites.values()))).hexdigest()


def reserve_rounds(
    ledger: Ledger, run: str, releases: Sequence[Release], *, budget: tuple[float, float], sites: int, accountant: Accountant = "rdp",
    owner: Owner | None = None,
) -> Entry:  # fmt: skip
    """Reserve the rounds of a run in the ledger of the federation (`Ledger(folder, federation_identity(...))`), before the first.

    The account is opened at its first use, for `sites` sites, with `budget` (epsilon, delta). `owner`: a key of this reservation, by which it is found
    after a kill. Raises `PrivacyError` over budget.
    """
    opening = Opening(budget, sites, UNIT, "federation", accountant)
    return ledger.reserve(run, releases, kind="federated-round", opening=opening, owner=owner)


def settle_rounds(ledger: Ledger, reservation: Entry, releases: Sequence[Release]) -> Entry:
    """Replace the reservation by the rounds that were released."""
    return ledger.settle(reservation.number, releases)
