"""ArmoRM's scales and ridge regressions: closed forms in float64 NumPy, refusals, laws, memory."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from melior import ops
from melior.losses.aspects import (
    BLOCK,
    Scale,
    bin_centres,
    masked_ridge,
    normal_equations,
    ridge,
)

NAMES = ("clarity", "honesty", "length")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=ops.generator(seed), dtype=torch.float64)


def rated(n: int = 300, *, seed: int = 0, noise: float = 0.1):
    """Answers of 6 features, rated by three linear rules."""
    features, rules = normal(n, 6, seed=seed), normal(3, 6, seed=seed + 1)
    return features, features @ rules.T + noise * normal(n, 3, seed=seed + 2), rules


def fit(features, ratings, **options):
    return masked_ridge(features, ratings, names=NAMES, generator=ops.generator(42), **options)


def fit_one(features, ratings, alpha: float) -> torch.Tensor:
    return ridge(*normal_equations(features, ratings, torch.arange(len(features))), alpha)


# Scales


def test_helpsteers_ratings_become_the_centres_of_five_bins():
    unit = bin_centres(0, 5).unit(torch.arange(5, dtype=torch.float64))
    assert torch.allclose(unit, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64))
    assert torch.allclose(bin_centres(0, 5).ratings(unit), 5 * unit - 0.5)  # the model card's


@given(st.integers(-5, 5), st.integers(1, 10), st.floats(-20, 20))
def test_a_scale_and_back_is_nothing(low, levels, rating):
    scale, given_ = bin_centres(low, levels), torch.tensor([rating], dtype=torch.float64)
    assert scale.ratings(scale.unit(given_)).item() == pytest.approx(rating, abs=1e-12)


def test_what_is_in_the_unit_interval_stays():
    scale = Scale(start=0.0, width=1.0)
    assert scale.unit(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


# Regression


@pytest.mark.parametrize("alpha", [1e-4, 1.0, 1e4])
def test_ridge_is_least_squares_on_rows_that_hold_the_penalty(alpha):
    """`|H w - r|^2 + alpha |w|^2` is plain least squares with the rows `sqrt(alpha) I` below."""
    features, ratings, _ = rated()
    stacked = np.concatenate([features.numpy(), alpha**0.5 * np.eye(6)])
    target = np.concatenate([ratings[:, 0].numpy(), np.zeros(6)])
    wanted = np.linalg.lstsq(stacked, target, rcond=None)[0]
    assert np.allclose(fit_one(features, ratings[:, 0], alpha).numpy(), wanted, rtol=1e-10)


def test_more_features_than_ratings_are_fitted_too():
    features, ratings = normal(10, 40), normal(10, seed=1)
    found = fit_one(features, ratings, 1e-4)
    assert (features @ found - ratings).abs().max() < 1e-3


def test_each_objective_is_fitted_as_if_it_were_alone_on_the_rows_that_have_it():
    features, ratings, _ = rated()
    ratings[:150, 0] = torch.nan
    ratings[150:, 1] = torch.nan
    together = fit(features, ratings)
    order = torch.randperm(300, generator=ops.generator(42))
    for place in range(3):
        own = ratings[order, place]
        rows = order[~own.isnan()]
        train = rows[: round(0.8 * len(rows))]
        alpha = together.alphas[place].item()
        wanted = fit_one(features[train], ratings[train, place], alpha)
        assert torch.allclose(together.weights[place], wanted, rtol=1e-12)
        held = rows[round(0.8 * len(rows)) :]
        errors = features[held] @ wanted - ratings[held, place]
        assert together.errors[place].item() == pytest.approx(errors.square().mean().item())


def test_blocks_add_up_to_the_closed_form_of_all_rows():
    n = 2 * BLOCK + 100
    features, ratings, _ = rated(n)
    ratings[::3, 1] = torch.nan
    narrow = features.float()
    found = fit(narrow, ratings)
    order, wide = torch.randperm(n, generator=ops.generator(42)), narrow.double().numpy()
    for place in range(3):
        rows = order[~ratings[order, place].isnan()].numpy()
        train, held = np.split(rows, [len(rows) - round(0.2 * len(rows))])
        own = ratings[:, place].numpy()
        penalty = found.alphas[place].item() * np.eye(6)
        wanted = np.linalg.solve(wide[train].T @ wide[train] + penalty, wide[train].T @ own[train])
        assert np.allclose(found.weights[place].numpy(), wanted, rtol=1e-10, atol=0)
        error = np.square(wide[held] @ wanted - own[held]).mean()
        assert found.errors[place].item() == pytest.approx(error, rel=1e-10)
    wanted = wide @ found.weights.numpy().T
    assert np.allclose(found.rewards(narrow).numpy(), wanted, rtol=1e-10, atol=1e-12)


def test_no_more_than_a_block_of_features_is_wide_at_once():
    class Watch(TorchDispatchMode):
        """Notes the most numbers of a float64 tensor that anything makes."""

        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for one in tree_leaves(made):
                if isinstance(one, torch.Tensor) and one.dtype == torch.float64:
                    self.most = max(self.most, one.numel())
            return made

    features = normal(3 * BLOCK, 40).float()
    ratings = normal(3 * BLOCK, 3, seed=1)
    with Watch() as watch:
        fit(features, ratings).rewards(features)
    assert watch.most == 40 * BLOCK


def test_missing_ratings_do_not_move_what_is_learned():
    features, ratings, rules = rated(600)
    ratings[::2, 0] = torch.nan
    found = fit(features, ratings)
    assert (found.weights - rules).abs().max() < 0.05
    zeros = fit(features, ratings.nan_to_num(0.0))
    assert (zeros.weights[0] - rules[0]).abs().max() > 0.3  # the classic mistake
    assert torch.allclose(found.rewards(features), features @ found.weights.T)


def test_the_alpha_has_the_least_error_on_held_out_ratings():
    """Of many features and few, noisy ratings: a strong penalty; of clean ones: a weak one."""
    features = normal(80, 60)
    truth = features @ normal(60, seed=1)
    noisy = torch.stack([truth, 5 * normal(80, seed=2), truth], -1)
    found = fit(features, noisy)
    assert found.alphas[0] <= 0.01
    assert found.alphas[1] >= 100
    for place in range(3):
        for alpha in (1e-4, 1.0, 1e4):
            assert found.errors[place] <= fit(features, noisy, alphas=[alpha]).errors[place]


def test_of_equal_errors_the_largest_alpha_is_taken():
    features, ratings, _ = rated()
    assert fit(features * 0, ratings).alphas.tolist() == [1e4] * 3


def test_the_same_seed_gives_the_same_bits():
    features, ratings, _ = rated()
    assert torch.equal(fit(features, ratings).weights, fit(features, ratings).weights)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.nan, "honesty: at least 2 ratings are needed; found none"),
        (torch.inf, "honesty: ratings must be finite, or nan where missing; found inf"),
    ],
)
def test_ratings_that_teach_nothing_are_refused_by_name(values, said):
    features, ratings, _ = rated()
    ratings[:, 1] = values
    with pytest.raises(ValueError, match=said):
        fit(features, ratings)


def test_few_ratings_are_fitted_by_a_ridge_that_is_not_weak():
    features, ratings, _ = rated(noise=0)
    ratings[49:, 2] = torch.nan
    found = fit(features, ratings)
    assert found.alphas.tolist() == [1e-4, 1e-4, 1.0]
    ratings[50:, 1] = torch.nan
    assert fit(features, ratings).alphas[1] == 1e-4
    assert fit(features, ratings, alphas=[0.1]).alphas[2] == 0.1  # no other was allowed


def test_ratings_of_a_single_prompt_are_refused():
    features, ratings, _ = rated()
    ratings[100:, 0] = torch.nan
    with pytest.raises(ValueError, match=r"clarity: ratings of at least 2 prompts .* 100 of one"):
        fit(features, ratings, prompts=[0] * 100 + list(range(1, 201)))


def test_constant_ratings_are_learned_and_explain_nothing():
    features, ratings, _ = rated()
    features[:, 0] = 1.0
    ratings[:, 1] = 0.5
    found = fit(features, ratings)
    assert (found.rewards(features)[:, 1] - 0.5).abs().max() < 1e-3
    assert found.explained[1].isnan()
    assert found.correlations[1] == 0
    assert (found.correlations[[0, 2]] > 0.8).all()


def test_answers_to_one_prompt_are_held_out_together():
    """Ratings that are of the prompt alone: by rows they are known by heart, by prompts not."""
    own = normal(60, 60).repeat_interleave(5, 0)
    ratings = normal(60, 3, seed=1).repeat_interleave(5, 0)
    by_rows = fit(own, ratings)
    by_prompts = fit(own, ratings, prompts=[i // 5 for i in range(300)])
    assert (by_rows.errors < by_prompts.errors / 2).all()


def test_what_held_out_ratings_say_is_of_held_out_ratings():
    features, ratings, _ = rated(noise=1.0)
    found = fit(features, ratings)
    held = torch.randperm(300, generator=ops.generator(42))[240:]
    for place in range(3):
        said, true = features[held] @ found.weights[place], ratings[held, place]
        error = (said - true).square().mean()
        assert found.errors[place].item() == pytest.approx(error.item())
        wanted = 1 - (said - true).square().sum() / (true - true.mean()).square().sum()
        assert found.explained[place].item() == pytest.approx(wanted.item())
        wanted = np.corrcoef(said.numpy(), true.numpy())[0, 1]
        assert found.correlations[place].item() == pytest.approx(wanted)


def test_features_that_are_not_finite_are_refused():
    features, ratings, _ = rated()
    features[3, 2] = torch.nan
    with pytest.raises(ValueError, match="features must be finite"):
        fit(features, ratings)
