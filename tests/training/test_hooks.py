import io
import re

from rich.console import Console

from melior.training.hooks import Progress, counted, every


def test_every_acts_at_its_steps_and_the_last():
    done = []
    hook = every(3, done.append, last=8)
    for step in range(1, 9):
        hook(step, {})
    assert done == [3, 6, 8]
    never = every(0, done.append, last=0)
    never(1, {})
    assert done == [3, 6, 8]


def shown(total, *, is_terminal, pause=0.0, start=0):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
    with Progress(total, start=start, console=console, pause=pause) as progress:
        for step in range(start + 1, total + 1):
            progress(step, {"loss": 0.5 / step, "rewards/accuracies": 0.75, "other": 1.0})
    return console.file.getvalue()


def test_a_file_gets_plain_lines_with_the_numbers_that_matter():
    lines = shown(12, start=9, is_terminal=False).splitlines()
    assert len(lines) == 3
    number = r"\d[\d.e-]*"
    wanted = rf"step 12/12  loss 0\.04167  rewards/accuracies 0\.75  {number} steps/s  0:00 left"
    assert re.fullmatch(wanted, lines[-1]), lines[-1]


def test_a_file_gets_few_lines_but_the_first_and_last():
    lines = shown(500, is_terminal=False, pause=60.0).splitlines()
    assert [line.split()[1] for line in lines] == ["1/500", "500/500"]


def test_a_terminal_gets_a_live_line():
    text = shown(3, is_terminal=True)
    assert "3/3" in text and "rewards/accuracies 0.75" in text and "\x1b[" in text


def test_counting_is_shown_on_a_terminal_only():
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
        with counted("tokenising", console=console) as progress:
            progress(41)
        assert ("tokenising" in console.file.getvalue()) == is_terminal
