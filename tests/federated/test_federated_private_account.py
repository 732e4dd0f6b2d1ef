"""What private rounds cost: equal to dp-accounting and to Flower's accountant, and in plain words."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from secure_sites import flower

from tauon.errors import PrivacyError, RecipeError
from tauon.federated.private import (
    UpdatePrivacy,
    calibrate_noise,
    explain_privacy,
    explain_records,
    federation_identity,
    private_layout,
    reserve_rounds,
    settle_rounds,
    site_guarantee,
    site_releases,
)
from tauon.privacy.accounting import Guarantee, Release, guarantee
from tauon.privacy.ledger import Ledger

DELTA = 1e-4


def central(**changes: object) -> UpdatePrivacy:
    return UpdatePrivacy(**({"mode": "central", "clip_norm": 1.0, "noise_multiplier": 1.5, "sites": 100} | changes))  # type: ignore[arg-type]


def distributed() -> UpdatePrivacy:
    return UpdatePrivacy("distributed", 1.0, 1.5, sites=20, contributors=12, colluders=2)


def test_central_rounds_equal_dp_accounting() -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    found = site_guarantee(central(sampling="poisson", rate=0.1), 50, DELTA)
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.5)), 50)
    assert found.epsilon == pytest.approx(PLDAccountant().compose(event).get_epsilon(DELTA), rel=5e-3)
    fixed = site_guarantee(central(sampling="fixed-size", rate=0.1), 50, DELTA)
    replace_one = dp_accounting.NeighboringRelation.REPLACE_ONE
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.SampledWithoutReplacementDpEvent(100, 10, dp_accounting.GaussianDpEvent(0.75)), 50
    )
    theirs = RdpAccountant(neighboring_relation=replace_one).compose(event).get_epsilon(DELTA)
    assert fixed.epsilon == pytest.approx(theirs, rel=1e-6) and fixed.accountant == "rdp"


def test_central_rounds_without_sampling_equal_the_accountant_of_flower() -> None:
    accounting = flower("privacy_accounting")
    relation = next(r for r in accounting.NeighboringRelation if "add" in r.value.lower())
    config = accounting.PrivacyConfig(DELTA, 100, relation, accounting.SamplingMethod.NO_AMPLIFICATION)
    theirs = flower("privacy_accounting.rdp_accountant").RdpAccountant(config)
    theirs.compose(accounting.GaussianPrivacyEvent(1.5, 100, 100), 20)
    ours = site_guarantee(central(), 20, DELTA, accountant="rdp").epsilon
    assert ours == pytest.approx(theirs.get_epsilon(DELTA), rel=0.02)


def test_local_noise_hides_any_two_vectors_from_the_coordinator() -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    p = UpdatePrivacy("local", 1.0, 8.0, sites=30)
    found = site_guarantee(p, 5, DELTA, against="coordinator")
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(4.0), 5)
    assert found.epsilon == pytest.approx(PLDAccountant().compose(event).get_epsilon(DELTA), rel=5e-3)
    assert site_guarantee(p, 5, DELTA).epsilon == found.epsilon  # no more is known of the others' noise


def test_distributed_noise_costs_as_much_as_the_same_central_noise() -> None:
    p = distributed()
    layout = private_layout({"w": (1000,)}, p, 20)
    found = site_guarantee(p, 20, DELTA, against="coordinator", layout=layout)
    same = site_guarantee(central(sites=20), 20, DELTA, accountant="rdp")
    assert found.epsilon == pytest.approx(same.epsilon, rel=1e-9) and found.accountant == "rdp"
    with pytest.raises(PrivacyError, match="not proven"):
        site_guarantee(p, 20, DELTA, layout=layout, accountant="pld")
    with pytest.raises(PrivacyError, match="give its layout"):
        site_releases(p, 20)


def test_the_discrete_gaussian_is_dominated_by_the_accounted_one() -> None:
    """In one dimension dp-accounting has the exact privacy loss of the discrete Gaussian: it is within ours."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    for sigma, sensitivity in ((20.0, 10), (60.0, 50)):
        discrete = pld.from_discrete_gaussian_mechanism(sigma, sensitivity=sensitivity).get_epsilon_for_delta(1e-5)
        ours = guarantee(Release(sigma / sensitivity, "full"), 1e-5, accountant="rdp").epsilon
        assert discrete <= ours


def test_sums_of_shares_are_discrete_gaussians_to_many_digits() -> None:
    """What theorem 1 of Kairouz et al. bounds: the sum of 12 shares of 4 steps against one discrete Gaussian of the same variance."""
    k = np.arange(-200, 201)
    share = np.exp(-(k**2) / 32.0)
    share /= share.sum()
    total = np.array([1.0])
    for _ in range(12):
        total = np.convolve(total, share)
    reach = (len(total) - 1) // 2
    j = np.arange(-reach, reach + 1)
    one = np.exp(-(j**2) / (2 * 12 * 16.0))
    one /= one.sum()
    near = np.abs(j) < 6 * 4 * math.sqrt(12)
    assert np.abs(np.log(total[near] / one[near])).max() < 1e-6


@pytest.mark.parametrize(
    "p",
    [
        central(sampling="poisson", rate=0.1),
        central(sampling="fixed-size", rate=0.1),
        UpdatePrivacy("local", 1.0, 1.0, sites=100),
        distributed(),
    ],
    ids=["poisson", "fixed-size", "local", "distributed"],
)
def test_calibrated_noise_meets_its_target_from_below(p: UpdatePrivacy) -> None:
    layout = private_layout({"w": (1000,)}, p, p.sites)
    done = calibrate_noise(p, 30, target_epsilon=3.0, delta=DELTA)
    found = site_guarantee(done, 30, DELTA, layout=layout).epsilon
    assert 2.98 < found <= 3.0


def test_no_guarantee_is_claimed_against_a_coordinator_that_adds_the_noise() -> None:
    with pytest.raises(PrivacyError, match="no guarantee against the coordinator"):
        site_guarantee(central(), 5, DELTA, against="coordinator")


def test_delta_must_be_below_one_over_the_sites() -> None:
    with pytest.raises(RecipeError, match="not below 1/N"):
        site_guarantee(central(), 5, 0.02)


def test_the_guarantee_in_words_says_who_is_trusted_with_what() -> None:
    p = central(sampling="poisson", rate=0.1)
    text = explain_privacy(p, site_guarantee(p, 50, DELTA))
    assert "one site, with all its rows. After 50 rounds" in text and "The coordinator is trusted with the updates" in text
    assert "Who took part in a round is secret" in text and "accountant: pld" in text
    d = distributed()
    text = explain_privacy(d, site_guarantee(d, 5, DELTA, layout=private_layout({"w": (10,)}, d, 20)), against="coordinator")
    assert (
        "trusted with the noised sum only" in text and "At least 12 sites" in text and "fewer than 14" in text and "At most 2 sites" in text
    )
    local = UpdatePrivacy("local", 1.0, 8.0, sites=30)
    text = explain_privacy(local, site_guarantee(local, 5, DELTA))
    assert "No one is trusted with an update" in text and "any other data" in text
    weak = UpdatePrivacy("central", 1.0, 0.3, sites=30)
    assert "protects little" in explain_privacy(weak, site_guarantee(weak, 10, DELTA))


def test_records_are_protected_by_the_sites_own_accounts() -> None:
    by_site = {name: guarantee(Release(z, "poisson", 0.01, 100), 1e-5, unit="example") for name, z in (("a", 1.0), ("b", 2.0))}
    by_site = {n: Guarantee.from_json(g.to_json()) for n, g in by_site.items()}
    text = explain_records(by_site)
    assert f"The weakest guarantee of a site is epsilon {by_site['a'].epsilon:.3g}" in text and "- b: (" in text
    assert "No site trains with privacy" in explain_records({})


def test_rounds_are_charged_to_the_ledger_of_the_federation(tmp_path: Path) -> None:
    sites = {"a": bytes(32), "b": bytes([1] * 32)}
    assert federation_identity(sites) == federation_identity(dict(reversed(sites.items()))) != federation_identity({"a": bytes(32)})
    ledger = Ledger(tmp_path, federation_identity(sites))
    p = central()
    planned = site_releases(p, 20)
    made = reserve_rounds(ledger, "first", planned, budget=(25.0, DELTA), sites=100)
    standing = ledger.standing()
    assert standing.reserved == pytest.approx(site_guarantee(p, 20, DELTA, accountant="rdp").epsilon, rel=1e-6) and standing.spent == 0
    settle_rounds(ledger, made, site_releases(p, 8))
    assert ledger.standing().spent == pytest.approx(site_guarantee(p, 8, DELTA, accountant="rdp").epsilon, rel=1e-6)
    with pytest.raises(PrivacyError, match="cannot start"):
        reserve_rounds(ledger, "second", site_releases(p, 200), budget=(25.0, DELTA), sites=100)
