"""MaM's claim: every arm is measured, the same seed twice alike, and the truth has no error."""

import numpy as np
import pytest
import torch

from melior.claims import mam
from melior.claims.claim import judge
from melior.evaluation.marginal import exact_log_marginals


@pytest.fixture
def small(monkeypatch):
    for name, value in {"SIDE": 3, "WIDTH": 8, "COUNT": 8, "REPEATS": 1}.items():
        monkeypatch.setattr(mam, name, value)
    monkeypatch.setattr(mam, "PARTS", dict.fromkeys(mam.PARTS, (1, 8)))


def test_every_rule_and_table_finds_its_arm(small):
    found, again = (mam.CLAIM.measure([seed], 2) for seed in (3, 3))
    for arm, quantities in found.items():
        for name, values in quantities.items():
            assert np.isfinite(values).all()
            assert name == "speed" or np.array_equal(values, again[arm][name])
    for rule in mam.CLAIM.rules:
        assert len(judge(rule, found).values) == 1
    for aside in mam.CLAIM.asides:
        assert len(aside.measure(found)) == 1
    for table in mam.CLAIM.tables:
        assert all(name in found[arm] for arm in table.arms for name in table.quantities)
    cloud, *dots = mam.CLAIM.pictures
    for picture in dots:
        assert all(picture.quantity in found[arm] for arm in picture.arms)
    exact, said = (found[cloud.arm][quantity] for quantity in (cloud.x, cloud.y))
    assert exact.shape == said.shape == (1, mam.QUERIES)
    assert np.abs(said - exact).mean() == pytest.approx(found["MaM"]["error"][0], rel=1e-6)


class Exact:
    """Marginals and conditionals that are right, by listing."""

    def __init__(self, world):
        self.world = world

    def normalised(self, tokens):
        return exact_log_marginals(self.world.rows, self.world.log_joint, tokens)

    def conditionals(self, tokens):
        n, d = tokens.shape
        each = torch.eye(d, dtype=torch.bool)[None, :, None]
        values = torch.arange(1, 3)[None, None, :, None]
        asked = torch.where(each, values, tokens[:, None, None])
        return self.normalised(asked.flatten(0, 2)).view(n, d, 2)


def test_exact_networks_have_no_error():
    world = mam.lattice(3)
    exact = Exact(world)
    queries = mam.asked(world, 0)
    found = mam.of_marginals(world, exact.normalised, queries)
    assert (
        max(found["distance"], found["error"], abs(found["sum"] - 1)) < 1e-6
    )  # energies in float32
    assert found["Pearson"] == pytest.approx(1) and found["Spearman"] == pytest.approx(1)
    orders = torch.stack([torch.arange(9), torch.tensor([4, 0, 8, 1, 7, 2, 6, 3, 5])])
    assert mam.of_conditionals(world, exact.conditionals, orders)["KL"] < 1e-6


def test_queries_are_parts_of_rows():
    queries = mam.asked(mam.lattice(3), 1)
    known = (queries > 0).sum(-1)
    assert known.min() >= 1 and known.max() <= 8 and len(known.unique()) == 8
