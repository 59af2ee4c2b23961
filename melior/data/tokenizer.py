"""What a tokenizer says of itself: its tokens, its chat template, and what it leaves open."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from melior.data.template import Tokens, check_template

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + END + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def known_tokens(tokenizer: PreTrainedTokenizerBase, given: frozenset[int]) -> Tokens:
    """Return the tokens that it finds whole, `given` among those that end an answer."""
    added = tokenizer.added_tokens_decoder
    special = {token.content for token in added.values() if token.special}
    stops = {added[index].content for index in given if index in added}
    end = tokenizer.eos_token or min(stops, default=tokenizer.pad_token or "")
    return Tokens(
        added=frozenset(token.content for token in added.values()),
        special=frozenset(special | set(tokenizer.all_special_tokens)),
        stops=frozenset(stops | {end} - {""}),
        end=end,
    )


def chosen_template(
    tokenizer: PreTrainedTokenizerBase, template: str, end: str
) -> tuple[str, str | None, str]:
    """Return the template's name, its text or None for plain text, and a note."""
    if template == "auto":
        own = tokenizer.chat_template
        if isinstance(own, dict) and "default" not in own:
            raise ValueError(
                f"tokenizer: has chat templates named {', '.join(own)}, and none is the default;"
                " save one of them in a file and give --chat-template FILE"
            )
        own = own["default"] if isinstance(own, dict) else own
        note = "" if own else "the tokenizer has no chat template: prompts are plain text"
        return "tokenizer", own or None, note
    if template == "plain":
        return "plain", None, ""
    if template == "chatml":
        words = ("<|im_start|>", "<|im_end|>")
        unknown = [word for word in words if word not in tokenizer.get_added_vocab()]
        end = end if words[1] in unknown else words[1]
        note = f"the tokenizer has no token {' or '.join(unknown)}: " if unknown else ""
        note += "ChatML's marks are ordinary text" if words[0] in unknown else ""
        return "chatml", CHATML.replace("END", repr(end)), note
    check_template(template)
    file = Path(template)
    return file.name, file.read_text(encoding="utf-8"), ""


def start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer by itself puts before a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
    return whole[: starts[0]] if starts else []


def notes(
    tokenizer: PreTrainedTokenizerBase, start: list[int], *, has_template: bool, probe: str
) -> Iterable[str]:
    """Yield what it leaves open; `probe` is what its template writes around a known prompt."""
    begin = tokenizer.decode(start)
    if has_template and start and begin not in probe:
        yield f"the chat template writes no {begin!r}, so there is none, as at inference"
    if tokenizer.eos_token is None:
        yield "the tokenizer has no end-of-sequence token"
    if tokenizer.pad_token is None:
        yield "the tokenizer has no padding token: an end token fills up rows, masked by length"
