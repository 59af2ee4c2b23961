"""Files -> tokens: one pass, the same numbers as ever, kept and found again."""

import hashlib
import json
import multiprocessing
import threading
import time

import pytest

from melior.data.chat import ChatFormat
from melior.data.files import read_pairs
from melior.data.lint import lint_pairs
from melior.options import DataOptions
from melior.stages import encoding, reading
from melior.stages.data import answer_by_answer, as_it_was_said, prepare
from melior.training.jobs import n_unasked
from tests.tiny import CHATML, tiny_tokenizer

PARTS = [
    "Paris — the capital.", "It’s 1,234 m²!\n\n  So?", "<|im_end|> stays text",
    "好的 🦊 \tfoo", "def f(x):\n    return x  # ſ\u200b", "we'll  see...", "e\u0301té 'S",
]  # fmt: skip


def said(place: int) -> str:
    return " ".join(PARTS[(place * step + step) % len(PARTS)] for step in range(1, 2 + place % 4))


def pairs(count: int = 40) -> list[dict[str, object]]:
    return [
        {"prompt": said(i // 2), "chosen": said(i + 1), "rejected": said(i + 3),
         "margin": i / 8, "is_finished_rejected": i % 5 > 0}
        for i in range(count)
    ]  # fmt: skip


def answers(count: int = 40) -> list[dict[str, object]]:
    return [
        {"prompt": said(i), "completion": said(i + 2), "label": i % 3 > 0} for i in range(count)
    ]


def lists(count: int = 24) -> list[dict[str, object]]:
    return [
        {"prompt": said(i), "candidates": [{"response": said(i + k), "score": k / 2, "steps": []}
                                           for k in range(2 + i % 3)]}
        for i in range(count)
    ]  # fmt: skip


KINDS = {"pairs": pairs, "answers": answers, "lists": lists, "comparisons": pairs}
FROZEN = {
    "pairs": "b06100171996a9c2",
    "answers": "2dfa100eeccb2f05",
    "lists": "d5ae19f4d05ec6c0",
    "comparisons": "b06100171996a9c2",
}
"""What came out when rows were read twice, and each text by the tokenizer."""


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def ready(source, chat, *, data="pairs", length=160, **options):
    asked = DataOptions((source,), max_length=length, max_long_share=1.0)
    return prepare(
        [source], chat, asked, data=data, has_strangers=data == "answers", seed=1,
        **{"encode": as_it_was_said} | options,
    )  # fmt: skip


def digest(found, source):
    about = json.dumps([found.record, [str(one) for one in found.findings]], sort_keys=True)
    groups = [
        [[a.tokens.tolist(), list(a.mask), a.n_prompt, a.steps.tolist()] for a in group.answers]
        + [group.scores, group.margin, group.weight, group.share, group.prompt.hex(), group.origin]
        for group in found.groups
    ]
    told = [about, repr(groups), repr(found.first_prompts)]
    return hashlib.sha256("\n".join(told).replace(source, "F").encode()).hexdigest()[:16]


@pytest.mark.parametrize("data", KINDS)
def test_tokens_and_findings_are_what_they_were(data, tmp_path):
    source = write(tmp_path / "rows.jsonl", KINDS[data]())
    assert digest(ready(source, ChatFormat(tiny_tokenizer()), data=data), source) == FROZEN[data]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own that keeps everything."""
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "LEAST", 0)
    return tmp_path / "cache" / "prepared"


@pytest.mark.parametrize("data", KINDS)
def test_what_was_kept_is_what_was_made(data, tmp_path, cache):
    source = write(tmp_path / "rows.jsonl", KINDS[data]())
    once, again = (ChatFormat(tiny_tokenizer()) for _ in range(2))
    made = ready(source, once, data=data)
    progress = list[int]()
    found = ready(source, again, data=data, on_progress=progress.append)
    assert len(list(cache.iterdir())) == 1
    assert digest(found, source) == digest(made, source)
    assert progress == [len(KINDS[data]())]
    assert (again.n_control_texts, again.n_boundary_merges) == (
        once.n_control_texts, once.n_boundary_merges,
    )  # fmt: skip
    assert once.n_control_texts > 0


def test_it_is_made_again_wherever_something_else_would_come_out(tmp_path, cache):
    rows = pairs(8)
    source, other = write(tmp_path / "rows.jsonl", rows), write(tmp_path / "other.jsonl", rows)
    chat = ChatFormat(tiny_tokenizer())
    asked = [{}, {"length": 140}, {"tolerated": ("too-long",)}, {"held_out": [other]},
             {"encode": answer_by_answer}, {"data": "comparisons"}]  # fmt: skip
    for options in asked:
        ready(source, chat, **options)
    ready(other, chat)
    ready(source, ChatFormat(tiny_tokenizer("be brief" + CHATML)))
    write(tmp_path / "rows.jsonl", [*rows, rows[0] | {"chosen": "last"}])
    last = ready(source, chat).groups[-1]
    assert last.origin == f"{source}:{len(rows) + 1}"
    assert len(list(cache.iterdir())) == len(asked) + 3


def test_what_is_damaged_or_small_is_made_again(tmp_path, cache, monkeypatch):
    source, chat = write(tmp_path / "rows.jsonl", pairs()), ChatFormat(tiny_tokenizer())
    made = digest(ready(source, chat), source)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert digest(ready(source, ChatFormat(tiny_tokenizer())), source) == made
    assert file.read_bytes() == whole
    file.unlink()
    monkeypatch.setattr(reading, "LEAST", len(whole) + 1)
    ready(source, chat)
    assert not list(cache.iterdir())


def test_rows_are_linted_as_by_themselves(tmp_path):
    source = write(tmp_path / "rows.jsonl", pairs())
    found = ready(source, ChatFormat(tiny_tokenizer())).findings
    assert [one for one in found if one.code != "too-long"] == lint_pairs(read_pairs(source))


def test_the_garbage_collector_is_left_as_it_was(tmp_path):
    import gc

    before = gc.get_threshold()
    with pytest.raises(ValueError, match=r"bad.jsonl:2: .* needs"):
        ready(write(tmp_path / "bad.jsonl", [*pairs(1), {"prompt": "q"}]),
              ChatFormat(tiny_tokenizer()))  # fmt: skip
    assert gc.get_threshold() == before


@pytest.fixture
def small(monkeypatch):
    """Few rows in a chunk, and of these few that one process does by itself."""
    monkeypatch.setattr(encoding, "CHUNK", 2)
    monkeypatch.setattr(encoding, "MANY", 2)
    monkeypatch.setattr(encoding, "ALONE", 4)


@pytest.mark.parametrize("data", ["pairs", "answers", "lists"])
def test_it_does_not_matter_how_many_processes_make_tokens(data, tmp_path, small):
    source = write(tmp_path / "rows.jsonl", KINDS[data]())
    chats = [ChatFormat(tiny_tokenizer()) for _ in range(2)]
    told: list[list[int]] = [[], []]
    one, two = (
        ready(source, chat, data=data, processes=n, on_progress=told[n - 1].append)
        for n, chat in enumerate(chats, 1)
    )
    assert digest(two, source) == digest(one, source) == FROZEN[data]
    assert told[0] == told[1] and len(told[0]) > 5
    met = [(chat.n_control_texts, chat.n_boundary_merges) for chat in chats]
    assert met[0] == met[1] and met[0][0] > 0


@pytest.mark.parametrize(
    "bad", [{20: "\ud800 half"}, {20: 7}, {20: "\ud800", 22: 7}, {22: 7, 35: 7}]
)
def test_the_same_bad_row_is_named_first(bad, tmp_path, small):
    rows = pairs()
    for place, said_there in bad.items():
        rows[place - 1]["chosen"] = said_there
    source, found = write(tmp_path / "rows.jsonl", rows), []
    for processes in (1, 2):
        with pytest.raises(ValueError, match=rf"rows.jsonl:{min(bad)}: ") as raised:
            ready(source, ChatFormat(tiny_tokenizer()), processes=processes)
        found.append(str(raised.value))
    assert found[0] == found[1]


def test_a_process_that_is_killed_is_told_of(tmp_path, small):
    def kill() -> None:
        while not (begun := multiprocessing.active_children()):
            time.sleep(0.001)
        begun[0].kill()

    source = write(tmp_path / "rows.jsonl", pairs())
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ValueError, match=r"rows.jsonl:5: a process .* was killed; .* memory"):
        ready(source, ChatFormat(tiny_tokenizer()), processes=2)
    killer.join()
    assert not multiprocessing.active_children()


def test_no_program_but_our_own_begins_processes_unasked():
    assert n_unasked() == 1
