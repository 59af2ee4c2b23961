"""`melior data show` marks exactly the scored tokens, in colours and without."""

import io
import json

import pytest
from rich.console import Console

from melior.commands.show import Config, run, show
from melior.data.chat import ChatFormat
from melior.records import Candidate, Group, Pair, Turn
from tests.tiny import tiny_tokenizer


def user(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


def said(text: str) -> tuple[Turn, ...]:
    return (Turn("assistant", text),)


def shown(*records: Pair | Group, colours: bool = False) -> str:
    file = io.StringIO()
    system = "truecolor" if colours else None
    console = Console(file=file, force_terminal=colours, color_system=system, highlight=False)
    show(records, ChatFormat(tiny_tokenizer()), console)
    return file.getvalue()


PAIR = Pair(user("capital of France?"), said("Paris"), said(""), origin="a.jsonl:7")


def test_marks_stand_around_what_is_scored_and_nothing_else():
    lines = shown(PAIR).splitlines()
    fed = len(ChatFormat(tiny_tokenizer()).prompt_tokens(PAIR.prompt))
    start = lines.index(f"a.jsonl:7 prompt: {fed} tokens fed")
    assert lines[start + 1 : start + 4] == [
        r"{<|im_start|>}user\n",
        r"capital of France?{<|im_end|>}\n",
        r"{<|im_start|>}assistant\n",
    ]
    chosen, answer = lines[start + 5 : start + 7]
    assert chosen.startswith("a.jsonl:7 chosen: ")
    assert chosen.endswith("tokens scored; the end token <|im_end|> is scored once")
    assert answer.replace("][", "") == "[Paris{<|im_end|>}]"
    assert lines[start + 7].startswith("a.jsonl:7 rejected: 1 tokens scored")
    assert lines[start + 8] == "[{<|im_end|>}]"


def test_colours_take_the_place_of_marks():
    text = shown(PAIR, colours=True)
    assert "[Paris" not in text
    assert "\x1b[1;30;43m<|im_end|>" in text
    assert "\x1b[1;35m<|im_start|>" in text


def test_turns_of_others_inside_an_answer_are_fed():
    response = (*said("one"), *user("and?"), *said("two"))
    text = shown(Pair(user("count"), response, said("no"), origin="b:1"))
    assert r"and?{<|im_end|>}\n" in text
    assert "tokens of others fed; the end token <|im_end|> is scored 2 times" in text


def test_what_speaks_to_a_terminal_is_written_out_and_false_control_tokens_are_text():
    text = shown(Pair(user("\x1b[31m\r\u202e"), said("<|im_end|>"), said("b"), origin="c:1"))
    assert r"\x1b[31m\r" in text
    assert r"\u202e" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("[{<|im_end|>}]") == 2


def test_candidates_are_shown_with_their_scores_and_prompts_alone():
    candidates = (Candidate(said("x"), 0.5), Candidate(said("y")))
    text = shown(Group(user("hi"), candidates, origin="d:1"), Group(user("ho"), (), origin="d:2"))
    assert "d:1 candidate 1 (score 0.5): 2 tokens scored" in text
    assert "d:1 candidate 2: 2 tokens scored" in text
    assert "d:2 prompt:" in text


def test_the_command_reads_a_file_and_a_model(tmp_path, model_folder, capsys):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(Config((str(file),), str(model_folder), rows=2, start=2))
    text = capsys.readouterr().out
    assert "pairs.jsonl:2 prompt" in text
    assert "pairs.jsonl:3 rejected" in text
    assert "pairs.jsonl:1" not in text
    assert "pairs.jsonl:4" not in text
    with pytest.raises(ValueError, match="needs at least 9 rows"):
        run(Config((str(file),), str(model_folder), start=9))


@pytest.mark.parametrize("bad", [{"files": ()}, {"rows": 0}, {"start": 0}])
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match="found"):
        Config(**({"files": ("a.jsonl",), "model": "m"} | bad))
