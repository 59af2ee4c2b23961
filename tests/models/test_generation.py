"""Sampling against exact distributions, other implementations and itself."""

import itertools
import math

import pytest
import torch
from transformers.cache_utils import DynamicCache

from melior.models import decoding, generation
from melior.models.decoding import Cached, Recomputed, shares_prompts
from melior.models.generation import complete
from melior.models.next_token import next_token_log_probs
from melior.options import Sampling
from tests.tiny import EXPERTS, FAMILIES, PADDED, tiny_model, tiny_tokenizer

PROMPTS = [list(range(5, 5 + n)) for n in (3, 17, 9)]
END = 2


def decode(tokens):
    return tiny_tokenizer().decode(list(tokens), skip_special_tokens=True)


def letters(tokens):
    """One letter a token, so that texts are easy to reason about."""
    return "".join(chr(97 + token) for token in tokens)


def draw(model, prompts, sampling, *, seed=0, stops=(END,), decode=letters, **options):
    generator = torch.Generator().manual_seed(seed)
    return complete(
        model,
        prompts,
        sampling,
        stop_token_ids=stops,
        decode=decode,
        generator=generator,
        **options,
    )


def plain_log_probs(model, prompt, tokens):
    """The model's log-probabilities of an answer, by one plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0]
    log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return log_probs[torch.arange(len(tokens)), torch.tensor(tokens)]


def same(left, right, tolerance=1e-5):
    """Equal answers, and log-probabilities up to rounding."""
    for one, other in zip(itertools.chain(*left), itertools.chain(*right), strict=True):
        assert (one.tokens, one.text, one.is_finished) == (
            other.tokens,
            other.text,
            other.is_finished,
        )
        torch.testing.assert_close(
            torch.tensor(one.log_probs), torch.tensor(other.log_probs), atol=tolerance, rtol=0
        )


def generated(model, prompt, max_new_tokens):
    """What transformers' own generation says, greedily."""
    tokens = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": max_new_tokens}
    found = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_what_transformers_generates(family, dtype):
    model = tiny_model(family, dtype)
    assert shares_prompts(model)
    found = draw(model, PROMPTS, Sampling(k=2, temperature=0, max_new_tokens=20))
    for prompt, answers in zip(PROMPTS, found, strict=True):
        expected = generated(model, prompt, 20)
        assert [list(answer.tokens) for answer in answers] == [expected, expected]
        assert set(answers[0].sampling_log_probs) == {0.0}


@pytest.mark.parametrize("family", EXPERTS | PADDED)
def test_experts_states_and_sinks_say_what_transformers_generates(family):
    model = tiny_model(family)
    found = draw(model, PROMPTS, Sampling(k=2, temperature=0, max_new_tokens=12))
    for prompt, answers in zip(PROMPTS, found, strict=True):
        assert [list(answer.tokens) for answer in answers] == [generated(model, prompt, 12)] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_a_plain_forward_pass(family):
    model = tiny_model(family, torch.float64)
    found = draw(model, PROMPTS, Sampling(k=4, temperature=0.7, max_new_tokens=90), stops=range(8))
    lengths = {len(answer.tokens) for answers in found for answer in answers}
    assert len(lengths) > 1 and max(lengths) > decoding.GROWTH, "buffers grow, some rows end early"
    for prompt, answers in zip(PROMPTS, found, strict=True):
        for answer in answers:
            expected = plain_log_probs(model, prompt, answer.tokens)
            found_log_probs = torch.tensor(answer.log_probs, dtype=torch.float64)
            torch.testing.assert_close(found_log_probs, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_prompts_is_its_prompts_one_by_one(family):
    model = tiny_model(family)
    sampling = Sampling(k=4, max_new_tokens=12)
    together = draw(model, PROMPTS, sampling)
    generator = torch.Generator().manual_seed(0)
    options = {"stop_token_ids": [END], "decode": letters, "generator": generator}
    alone = [complete(model, [prompt], sampling, **options)[0] for prompt in PROMPTS]
    same(together, alone)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_tokens", [1, 120, 400])
def test_rows_that_join_others_are_drawn_as_if_alone(family, max_tokens):
    model, read = tiny_model(family), []
    prompts = [list(range(5, 5 + n)) for n in (3, 17, 9, 4, 4, 30, 2)]
    sampling = Sampling(k=3, max_new_tokens=24)
    stops = range(40)  # rows end early, and at different times
    whole = draw(model, prompts, sampling, stops=stops)
    assert len({len(answer.tokens) for answers in whole for answer in answers}) > 5
    model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(args[0].shape), with_kwargs=True
    )
    same(whole, draw(model, prompts, sampling, stops=stops, max_tokens=max_tokens))
    first = [i for i, (_, tokens) in enumerate(read) if tokens > 1]
    assert len(first) > 1, "prompts are read as places become free"


def test_the_memory_bound_holds():
    model, seen = tiny_model(), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0].shape), with_kwargs=True
    )
    draw(model, PROMPTS, Sampling(k=5, max_new_tokens=12), max_tokens=60)
    assert max(rows for rows, _ in seen) <= 60 // (3 + 12)


def test_a_seed_gives_the_same_answers_and_another_one_others():
    model, sampling = tiny_model(), Sampling(k=4, max_new_tokens=12)
    first = draw(model, PROMPTS, sampling)
    assert first == draw(model, PROMPTS, sampling)
    assert first != draw(model, PROMPTS, sampling, seed=1)
    assert len({answer.tokens for answer in first[0]}) == 4


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("kind", [Cached, Recomputed])
def test_the_fallbacks_draw_the_same(family, kind, monkeypatch):
    model = tiny_model(family)
    sampling = Sampling(k=3, max_new_tokens=12)
    shared = draw(model, PROMPTS, sampling)
    monkeypatch.setitem(decoding._verdicts, model, False)
    if kind is Recomputed:
        monkeypatch.setattr(model, "forward", _without_cache(model.forward))
    with torch.no_grad():
        assert isinstance(decoding.encode(model, PROMPTS[:1])[1], kind)
    same(shared, draw(model, PROMPTS, sampling))


def _without_cache(forward):
    """A model that keeps no cache, as some do."""

    def wrapped(input_ids, use_cache=False, logits_to_keep=0):
        return forward(input_ids, use_cache=False, logits_to_keep=logits_to_keep)

    return wrapped


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("falcon", {"num_attention_heads": 4, "alibi": False}),
        (
            "lfm2",
            {
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "layer_types": ["conv", "full_attention"],
            },
        ),
    ],
)
def test_models_whose_layers_go_another_way_are_noticed_and_still_right(kind, settings):
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **small, **settings)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    assert not shares_prompts(model)
    for prompt, answers in zip(
        PROMPTS, draw(model, PROMPTS, Sampling(k=2, max_new_tokens=8), stops=()), strict=True
    ):
        for answer in answers:
            expected = plain_log_probs(model, prompt, answer.tokens)
            torch.testing.assert_close(torch.tensor(answer.log_probs), expected, atol=1e-4, rtol=0)


def test_the_model_is_left_as_it_was():
    model = tiny_model("gemma2").train()
    before = model.config._attn_implementation
    draw(model, PROMPTS, Sampling(max_new_tokens=3))
    assert model.training and model.config._attn_implementation == before
    cache = DynamicCache(config=model.config)
    assert model(torch.tensor([PROMPTS[0]]), past_key_values=cache).logits.requires_grad


# Chi-square of 20,000 draws; a right sampler fails each of these with probability 0.001.
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(k=20_000, max_new_tokens=3),
        Sampling(k=20_000, max_new_tokens=3, temperature=0.6),
        Sampling(k=20_000, max_new_tokens=3, temperature=2.0, top_k=3),
        Sampling(k=20_000, max_new_tokens=3, temperature=1.3, top_p=0.7),
        Sampling(k=20_000, max_new_tokens=3, temperature=1.3, top_k=4, top_p=0.8),
    ],
    ids=["plain", "temperature", "top-k", "top-p", "top-k and top-p"],
)
def test_frequencies_are_the_exact_distribution_of_all_continuations(sampling):
    model = tiny_model("llama", vocab_size=6)
    prompt = [3, 4, 5, 3]
    exact = _enumerated(model, prompt, sampling)
    assert math.isclose(sum(exact.values()), 1, rel_tol=1e-5)
    answers = draw(model, [prompt], sampling, max_tokens=200_000)[0]
    counts = dict.fromkeys(exact, 0)
    for answer in answers:
        counts[answer.tokens] += 1  # a continuation of probability zero is a KeyError
        assert math.isclose(sum(answer.sampling_log_probs), math.log(exact[answer.tokens]),
                            abs_tol=1e-3)  # fmt: skip
    expected = {tokens: share * sampling.k for tokens, share in exact.items()}
    rare = [tokens for tokens in exact if expected[tokens] < 5]
    cells = [(counts[t], expected[t]) for t in exact if expected[t] >= 5]
    if rare:
        cells.append((sum(counts[t] for t in rare), sum(expected[t] for t in rare)))
    statistic = sum((found - mean) ** 2 / mean for found, mean in cells)
    assert len(cells) > 5
    assert statistic < _chi_square_limit(len(cells) - 1)


def _enumerated(model, prompt, sampling):
    """Every continuation with its probability, the rules written again in plain Python."""
    found = {}

    def descend(tokens, share):
        if len(tokens) == sampling.max_new_tokens or tokens[-1:] == (END,):
            found[tokens] = share
            return
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0, -1]
        weights = [math.exp(x / sampling.temperature) for x in logits.double().tolist()]
        for token, part in enumerate(_filtered(weights, sampling)):
            if part > 0:
                descend((*tokens, token), share * part)

    descend((), 1.0)
    return found


def _filtered(weights, sampling):
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    if sampling.top_k:
        order = order[: sampling.top_k]
    total = sum(weights[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        if reached >= sampling.top_p:
            break
        kept.append(i)
        reached += weights[i] / total
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


def _chi_square_limit(freedom):
    """The 0.999 quantile, by Wilson and Hilferty's cube."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.0902 * math.sqrt(part)) ** 3


def test_top_p_keeps_ties_and_looks_as_far_as_it_must():
    logits = torch.zeros(1, 1000)
    kept = next_token_log_probs(logits, Sampling(top_p=0.5)).isfinite()
    assert kept.all(), "all are as likely as the last one kept"
    logits = torch.linspace(0, -1, 1000)[None]
    kept = next_token_log_probs(logits, Sampling(top_p=0.9)).isfinite().sum()
    reached = logits[0].softmax(-1).cumsum(-1)
    assert kept == int((reached < 0.9).sum()) + 1


def test_an_end_token_is_kept_in_the_tokens_and_not_in_the_text():
    model = tiny_model("llama", vocab_size=6)
    answers = draw(model, [[3, 4]], Sampling(k=200, max_new_tokens=6))[0]
    ended = [answer for answer in answers if answer.is_finished]
    assert 0 < len(ended) < len(answers)
    for answer in answers:
        assert answer.is_finished == (answer.tokens[-1] == END)
        assert END not in answer.tokens[:-1]
        assert len(answer.tokens) == 6 or answer.is_finished
        assert answer.text == letters(answer.tokens[: -1 if answer.is_finished else None])
        assert len(answer.tokens) == len(answer.log_probs) == len(answer.sampling_log_probs)


def test_a_stop_string_ends_the_answer_and_is_cut_off():
    model = tiny_model("llama", vocab_size=6)
    sampling = Sampling(k=200, max_new_tokens=12, temperature=1.5)
    free = draw(model, [[3, 4]], sampling, stops=())[0]
    stopped = draw(model, [[3, 4]], Sampling(**(vars(sampling) | {"stop": ("df", "a")})), stops=())[
        0
    ]
    hit = 0
    for one, other in zip(free, stopped, strict=True):
        found = [(at, at + len(s)) for s in ("df", "a") if (at := one.text.find(s)) >= 0]
        cut, end = min(found, key=lambda ends: ends[1], default=(None, None))
        assert other.tokens == one.tokens[:end], "the tokens of the stop string were sampled too"
        assert other.text == one.text[:cut]
        assert other.is_finished == bool(found)
        hit += bool(found)
    assert 20 < hit < 200


def test_a_stop_string_may_lie_across_tokens_of_several_bytes():
    model = tiny_model()
    sampling = Sampling(k=4, max_new_tokens=30)
    free = draw(model, PROMPTS[:1], sampling, decode=decode)[0]
    stop = free[0].text[5:8]
    found = draw(model, PROMPTS[:1], Sampling(k=4, max_new_tokens=30, stop=(stop,)), decode=decode)
    assert found[0][0].text == free[0].text[: free[0].text.find(stop)]
    assert found[0][0].is_finished


def test_an_empty_prompt_and_one_that_does_not_fit_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="prompt 2: needs at least one token; found none"):
        draw(model, [[1], []], Sampling())
    with pytest.raises(ValueError, match=r"512 positions; found 500 tokens and max_new_tokens 13"):
        draw(model, [[1] * 500], Sampling(max_new_tokens=13))
    assert draw(model, [], Sampling()) == []


@pytest.mark.parametrize(
    ("policy", "small", "n_threads"),
    [("PASSIVE", generation.SMALL, 1), ("PASSIVE", 0, 2), ("ACTIVE", generation.SMALL, 2)],
)
def test_few_rows_are_drawn_by_one_thread_where_others_sleep(policy, small, n_threads, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setattr(generation, "SMALL", small)
    before, seen = torch.get_num_threads(), []
    model = tiny_model()
    model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        complete(model, [[1, 2, 3]], Sampling(max_new_tokens=4), stop_token_ids=(),
                 decode=str, generator=torch.Generator().manual_seed(0))  # fmt: skip
        assert seen[-1] == n_threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
