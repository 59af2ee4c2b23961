"""The claim of reward-augmented data: goals keep good answers that lost from being unlearned.

Zhang et al. 2024, arXiv 2410.08067. A log-linear bandit whose expected reward is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior import ops
from melior.claims.bandit import (
    Pairs,
    expected_reward,
    log_probs,
    pairwise,
    rows_of,
)
from melior.claims.claim import (
    Array,
    Aside,
    Claim,
    Dots,
    Measured,
    Rule,
    Scatter,
    Table,
    at_least,
    at_most,
    difference,
)
from melior.claims.worlds import drawn_batches, fitted, per_seed, stacked
from melior.losses.preference import dpo

N_PROMPTS, ACTIONS, FEATURES, SHOWN = 400, 10, 24, 4
STEPS, BATCH_SIZE, LEARNING_RATE, BETA = 250, 64, 0.02, 0.1
LOWEST, HIGHEST, NEUTRAL = 1.0, 10.0, 5.5
GOOD = 7.0
"""True reward from which a rejected action is one that should not be unlearned."""
MIN_GAP = 1.5
"""Of the scores, in the arm that trains on clear pairs only."""


@dataclass(frozen=True)
class Setting:
    """How good answers are, how noisy their scores, and how many pairs there are."""

    shift: float
    noise: float
    n: int


SETTINGS = {
    "": Setting(shift=1.5, noise=1.5, n=200),
    ", balanced": Setting(shift=0.0, noise=1.5, n=200),
    ", noisy": Setting(shift=1.5, noise=3.0, n=400),
}
"""What is added to an arm's name, and the world that it is tried in."""


@dataclass(frozen=True)
class Rated:
    """Pairs with the noisy scores of both actions and the true reward of the rejected one."""

    features: Float[Tensor, "*e n a d"]
    chosen: Int[Tensor, "*e n"]
    rejected: Int[Tensor, "*e n"]
    score_chosen: Float[Tensor, "*e n"]
    score_rejected: Float[Tensor, "*e n"]
    reward_rejected: Float[Tensor, "*e n"]

    @property
    def pairs(self) -> Pairs:
        """The pairs alone."""
        return Pairs(self.features, self.chosen, self.rejected)


@dataclass(frozen=True)
class World:
    """What one seed gives, or several along a first axis."""

    start: Float[Tensor, "*e 2 d"]
    """The reference's weights, and how they change with the goal: not at all."""
    rated: Rated
    test_features: Float[Tensor, "*e n a d"]
    test_rewards: Float[Tensor, "*e n a"]


@dataclass(frozen=True)
class Records:
    """What is trained on: pairs, each under a goal, of which the first `count` are used."""

    pairs: Pairs
    goals: Float[Tensor, "e n"]
    count: Int[Tensor, " e"]


def plain(rated: Rated) -> Records:
    """The pairs as they are, under one and the same goal."""
    return records(rated.pairs, torch.full_like(rated.score_chosen, NEUTRAL))


def filtered(rated: Rated) -> Records:
    """The pairs whose scores lie clearly apart."""
    is_clear = rated.score_chosen - rated.score_rejected > MIN_GAP
    order = is_clear.int().argsort(dim=-1, descending=True, stable=True)
    goals = torch.full_like(rated.score_chosen, NEUTRAL)
    return Records(rated.pairs.of(order), goals, is_clear.sum(-1))


def with_goals(rated: Rated) -> Records:
    """Each pair twice: under its winner's score as it is, under its loser's score swapped."""
    swapped = Pairs(rated.features, rated.rejected, rated.chosen)
    goals = torch.cat([rated.score_chosen, rated.score_rejected], dim=1)
    return records(joined(rated.pairs, swapped), goals)


def without_swap(rated: Rated) -> Records:
    """The defect of the released code for templates without a system role."""
    goals = torch.cat([rated.score_chosen, rated.score_rejected], dim=1)
    return records(joined(rated.pairs, rated.pairs), goals)


def half_with_goals(rated: Rated) -> Records:
    """Goals on half of the pairs, so that there are as many records as plain pairs."""
    n = rated.chosen.shape[1] // 2
    return with_goals(Rated(**{name: part[:, :n] for name, part in vars(rated).items()}))


def records(pairs: Pairs, goals: Float[Tensor, "e n"]) -> Records:
    """Return records that are all used."""
    return Records(pairs, goals, torch.full((len(goals),), goals.shape[1]))


def joined(left: Pairs, right: Pairs) -> Pairs:
    """Put pairs behind pairs."""
    return Pairs(
        *(torch.cat([getattr(left, name), getattr(right, name)], dim=1) for name in vars(left))
    )


@dataclass(frozen=True)
class Arm:
    """What is trained on, and the goals that it is then asked for."""

    made: Callable[[Rated], Records]
    goals: tuple[float, ...] = (HIGHEST, NEUTRAL - 0.5, LOWEST)
    more_steps: int = 1
    learning_rate: float = LEARNING_RATE
    beta: float = BETA


PLAIN, TOP = (NEUTRAL,), (HIGHEST,)
ARMS = {
    "plain DPO": Arm(plain, PLAIN),
    "plain DPO, twice the steps": Arm(plain, PLAIN, more_steps=2),
    "clear pairs only": Arm(filtered, PLAIN),
    "goals": Arm(with_goals),
    "goals, half the pairs": Arm(half_with_goals, TOP),
    "no swap": Arm(without_swap),
}
SWEEP = {
    f"{name}, {said}": Arm(made, goals, learning_rate=rate, beta=beta)
    for said, rate, beta in (
        ("rate 0.01", 0.01, BETA),
        ("rate 0.04", 0.04, BETA),
        ("beta 0.03", LEARNING_RATE, 0.03),
        ("beta 0.3", LEARNING_RATE, 0.3),
    )
    for name, made, goals in (("plain DPO", plain, PLAIN), ("goals", with_goals, TOP))
}
ELSEWHERE = ("plain DPO", "goals", "no swap")


def measure(seeds: Sequence[int], steps: int) -> Measured:
    """Train every arm in the main setting, and the important ones in the others."""
    found: dict[str, dict[str, Array]] = {}
    for where, setting in SETTINGS.items():
        world = drawn_worlds(seeds, setting)
        found[f"reference{where}"] = judged(world.start, world, NEUTRAL)
        arms = ARMS | SWEEP if not where else {name: ARMS[name] for name in ELSEWHERE}
        for name, arm in arms.items():
            weights = trained(arm, world, seeds, steps)
            for goal in arm.goals:
                asked = f" at {goal:g}" if goal != NEUTRAL else ""
                found[f"{name}{asked}{where}"] = judged(weights, world, goal)
    return found


def drawn_worlds(seeds: Sequence[int], setting: Setting) -> World:
    """Draw one world per seed."""
    worlds = [drawn_world(ops.generator(seed), setting) for seed in seeds]
    return World(
        torch.stack([world.start for world in worlds]),
        stacked([world.rated for world in worlds]),
        torch.stack([world.test_features for world in worlds]),
        torch.stack([world.test_rewards for world in worlds]),
    )


def drawn_world(dice: torch.Generator, setting: Setting) -> World:
    """Draw what is rewarded, rated pairs, and prompts to be judged on."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=dice, dtype=torch.float64)

    direction = normal(FEATURES)
    direction = direction / direction.norm()
    features, test_features = (normal(N_PROMPTS, ACTIONS, FEATURES) for _ in range(2))
    rewards, test_rewards = (
        true_reward(own @ direction, setting) for own in (features, test_features)
    )
    start = torch.stack([0.15 * normal(FEATURES), torch.zeros(FEATURES, dtype=torch.float64)])
    rated = drawn_pairs(features, rewards, setting, dice)
    return World(start, rated, test_features, test_rewards)


def true_reward(worth: Float[Tensor, "n a"], setting: Setting) -> Float[Tensor, "n a"]:
    """Return rewards on the scale from 1 to 10."""
    return LOWEST + (HIGHEST - LOWEST) * (1.5 * worth + setting.shift).sigmoid()


def drawn_pairs(
    features: Float[Tensor, "p a d"],
    rewards: Float[Tensor, "p a"],
    setting: Setting,
    dice: torch.Generator,
) -> Rated:
    """Draw pairs: of some random actions the one that scores best against a random other.

    Pairs whose scores tie, as clipped ones do, would ask for both orders under one goal; they are
    drawn again, for all arms alike.
    """
    drawn = 4 * setting.n
    prompt = torch.randint(len(features), (drawn,), generator=dice)
    shown = torch.rand(drawn, ACTIONS, generator=dice).argsort(-1)[:, :SHOWN]
    reward = rewards[prompt].gather(-1, shown)
    noise = setting.noise * torch.randn(drawn, SHOWN, generator=dice, dtype=torch.float64)
    score = (reward + noise).clamp(LOWEST, HIGHEST)
    best = score.argmax(-1, keepdim=True)
    other = (best + torch.randint(1, SHOWN, (drawn, 1), generator=dice)) % SHOWN
    differs = (score.gather(-1, best) > score.gather(-1, other))[:, 0]
    kept = differs.nonzero()[: setting.n, 0]

    def of(values: Tensor, place: Tensor) -> Tensor:
        return values.gather(-1, place)[kept, 0]

    return Rated(
        features=features[prompt[kept]],
        chosen=of(shown, best),
        rejected=of(shown, other),
        score_chosen=of(score, best),
        score_rejected=of(score, other),
        reward_rejected=of(reward, other),
    )


def at_goal(weights: Float[Tensor, "e 2 d"], goals: Float[Tensor, "e n"]) -> Float[Tensor, "e n d"]:
    """Return the weights that a policy has under each goal."""
    place = (goals - NEUTRAL) / (HIGHEST - NEUTRAL)
    return weights[:, :1] + place[..., None] * weights[:, 1:]


def trained(arm: Arm, world: World, seeds: Sequence[int], steps: int) -> Tensor:
    """Return the weights that an arm arrives at."""
    data = arm.made(world.rated)
    steps = steps * arm.more_steps
    batches = drawn_batches(seeds, steps, batch_size=BATCH_SIZE, n=data.count.tolist())

    def loss(weights: Tensor, step: int) -> Tensor:
        rows = batches[step]
        pairs, goals = data.pairs.of(rows), rows_of(data.goals, rows)
        sides = [
            pairwise(log_probs(pairs.features, at_goal(own, goals)), pairs)
            for own in (weights, world.start)
        ]
        return dpo(*sides, beta=arm.beta).reshape(rows.shape)

    return fitted(world.start, loss, steps=steps, learning_rate=arm.learning_rate)


@torch.no_grad()
def judged(weights: Float[Tensor, "e 2 d"], world: World, goal: float) -> dict[str, Array]:
    """Measure a policy under a goal: expected reward, and what it unlearned."""
    goals = torch.full((len(weights), 1), goal, dtype=weights.dtype)
    asked = at_goal(weights, goals)
    reward = expected_reward(log_probs(world.test_features, asked), world.test_rewards)
    rated = world.rated
    moved = log_probs(rated.features, asked) - log_probs(rated.features, world.start[:, :1])
    fall = -moved.gather(-1, rated.rejected[..., None])[..., 0]
    is_good: Bool[Tensor, "e n"] = rated.reward_rejected >= GOOD
    unlearned = fall.where(is_good, 0.0).sum(-1) / is_good.sum(-1)
    return {"reward": per_seed(reward), "unlearning": per_seed(unlearned)}


def ratio(where: str) -> Callable[[Measured], Array]:
    """Return the measure: what goals unlearn for each nat that plain DPO unlearns."""

    def unlearning_ratio(measured: Measured) -> Array:
        ours, plainly = (measured[f"{arm}{where}"] for arm in ("goals at 10", "plain DPO"))
        return ours["unlearning"] / plainly["unlearning"]

    return unlearning_ratio


def elsewhere(where: str) -> tuple[str, ...]:
    """Return the names of the arms in another setting."""
    names = ("reference", "plain DPO", *GOALS, "no swap at 10", "no swap at 1")
    return tuple(f"{name}{where}" for name in names)


GOALS = ("goals at 10", "goals at 5", "goals at 1")
NO_SWAP = ("no swap at 10", "no swap at 5", "no swap at 1")
COLUMNS = ("reward", "unlearning")
CLAIM = Claim(
    name="reward-augmented",
    title="Reward-augmented data: goals spare good answers that lost",
    paper="Zhang et al. 2024, arXiv 2410.08067",
    claimed=(
        "With the same pairs, relabelling each under both scores as goals keeps the reward at the "
        "top goal, lets the goal steer, and unlearns good rejected answers less; without the swap "
        "of the second record none of this appears."
    ),
    world="""A log-linear bandit: 400 prompts of 10 actions with 24 normal features. The true
reward is `1 + 9 sigmoid(1.5 feature . u + 1.5)` with `u` of length 1, from 1 to 10 and mostly
high; scores are it plus noise of deviation 1.5, clipped to 1 to 10. 200 pairs: of four random
actions the one that scores best against a random other; pairs with equal scores are drawn
again, for all arms alike. The policy's logits are `feature . (W_0 + (g - 5.5) / 4.5 W_1)` under
goal `g`; plain arms train and answer at 5.5. The reference has `W_0` of deviation 0.15 and `W_1
= 0`. DPO with beta 0.1, 250 steps of Adam, 64 records each, rate 0.02.

Controls: plain DPO for twice the steps (as many passes over the pairs as goals make), pairs
whose scores lie more than 1.5 apart, goals on half of the pairs (as many records as plain DPO
has), and goals without the swap, the defect of the released code for templates without a system
role. Two more settings: *balanced* without the shift of 1.5, and *noisy* with noise of
deviation 3 on 400 pairs. **reward** is the exact expected reward on new prompts; **unlearning**
is by how many nats the log-probability of rejected actions with a true reward of 7 or more fell
on the training prompts, under the goal that is asked for. Asking a plain arm for another goal
changes nothing: its `W_1` stays 0.""",
    limits="""The thresholds were set after seeing pilot seeds, on the setting shown first; the
seeds here are others. In the pilot the balanced setting failed the rule on unlearning (0.78):
its rows are below and are not judged. The reward is near its ceiling, so that no gain in reward
can show. A larger beta is the plain way to unlearn less; it stands beside the rules. Actions
have no words: whether a language model understands a number in its prompt is not asked here.""",
    measure=measure,
    steps=STEPS,
    rules=(
        Rule("reward: goals at 10 minus plain DPO",
             difference("goals at 10", "plain DPO", "reward"), at_least(-0.1)),
        Rule("unlearning: goals at 10 over plain DPO", ratio(""), at_most(0.75)),
        Rule("reward: goals at 10 minus goals at 1",
             difference("goals at 10", "goals at 1", "reward"), at_least(3.0)),
        Rule("unlearning: no swap at 10 minus plain DPO",
             difference("no swap at 10", "plain DPO", "unlearning"), at_least(0.0)),
        Rule("reward: no swap at 10 minus no swap at 1",
             difference("no swap at 10", "no swap at 1", "reward"), at_most(0.5)),
    ),
    asides=(
        Aside("unlearning: goals at 10 over plain DPO, balanced", ratio(", balanced")),
        Aside("unlearning: goals at 10 over plain DPO, noisy", ratio(", noisy")),
        Aside("reward: goals at 10 minus plain DPO, balanced",
              difference("goals at 10, balanced", "plain DPO, balanced", "reward")),
        Aside("reward: goals at 10 on half of the pairs minus plain DPO",
              difference("goals, half the pairs at 10", "plain DPO", "reward")),
        Aside("unlearning: goals at 10 minus plain DPO of beta 0.3",
              difference("goals at 10", "plain DPO, beta 0.3", "unlearning")),
        Aside("reward: goals at 10 minus plain DPO of beta 0.3",
              difference("goals at 10", "plain DPO, beta 0.3", "reward")),
    ),
    tables=(
        Table("The arms", ("reference", "plain DPO", "plain DPO, twice the steps",
              "clear pairs only", *GOALS, "goals, half the pairs at 10", *NO_SWAP), COLUMNS),
        Table("Balanced", elsewhere(", balanced"), COLUMNS),
        Table("Noisy", elsewhere(", noisy"), COLUMNS),
        Table("Rates and betas", tuple(name if name.startswith("plain") else f"{name} at 10"
              for name in SWEEP), COLUMNS, "The arms above have rate 0.02 and beta 0.1."),
    ),
    pictures=(
        Dots("unlearning", "Unlearning of good rejected actions, in nats",
             ("plain DPO", "plain DPO, twice the steps", "clear pairs only", "goals at 10",
              "goals, half the pairs at 10", "no swap at 10"), "unlearning"),
        Dots("control", "Expected reward under each goal", (*GOALS, *NO_SWAP), "reward",
             "plain DPO"),
        Scatter("reward-and-unlearning", "Reward against unlearning", {
            "plain DPO over beta": ("plain DPO, beta 0.03", "plain DPO", "plain DPO, beta 0.3"),
            "goals at 10 over beta": ("goals, beta 0.03 at 10", "goals at 10",
                                      "goals, beta 0.3 at 10"),
            "plain DPO over rate": ("plain DPO, rate 0.01", "plain DPO", "plain DPO, rate 0.04"),
            "goals at 10 over rate": ("goals, rate 0.01 at 10", "goals at 10",
                                      "goals, rate 0.04 at 10"),
        }, "unlearning", "reward"),
    ),
)  # fmt: skip
