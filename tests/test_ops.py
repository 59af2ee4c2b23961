"""Seeds of a run's purposes: none is another's, in this run or in the next seed's."""

import torch

from melior import ops
from melior.models.control_policies import Critics, GaussianPolicy, PolicyOptions


def test_a_stream_is_the_same_each_time_and_no_other():
    names, seeds = ("policy", "critics", "batches", "1/batches"), (0, 1, 2, 11, 2**31)
    found = [ops.stream(seed, name) for seed in seeds for name in names]
    assert found == [ops.stream(seed, name) for seed in seeds for name in names]
    assert len(set(found)) == len(found)
    drawn = [torch.rand(4, generator=ops.generator(one)) for one in found]
    assert len({tuple(row.tolist()) for row in drawn}) == len(found)


def test_policies_and_critics_share_no_weights_whatever_their_seeds():
    shape = PolicyOptions(observations=3, actions=1, hidden=8)
    networks = [kind(shape, seed=seed) for seed in range(3) for kind in (GaussianPolicy, Critics)]
    numbers = torch.cat([own.detach().flatten() for net in networks for own in net.parameters()])
    scale_free = numbers / numbers.abs().max()
    assert len(scale_free.unique()) > 0.99 * len(numbers)
