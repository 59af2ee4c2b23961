"""Laws of the one path from conversations to tokens, over templates of every shape in use."""

import copy
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from melior.data.chat import ChatFormat
from melior.records import Turn
from tests.tiny import CHATML, CORPUS, tiny_tokenizer

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim }}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{% set thought = '' %}{% set said = m['content'] %}"
    "{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALWAYS_THINKS = QWEN3.replace(
    "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
)
GLM = (
    "{{ '[gMASK]' }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] | trim }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
NO_OPENING = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
)
TWO_ENDS = CHATML.replace("<|im_end|>\n", "<|im_end|><|endoftext|>\n")
REFUSES = "{{ raise_exception('not today') }}"

SPECIAL = {
    "chatml": (CHATML, "<|im_end|>", ["<|im_start|>"]),
    "llama3": (
        LLAMA3,
        "<|end_of_text|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    "gemma": (GEMMA, "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "mistral": (MISTRAL, "</s>", ["[INST]", "[/INST]"]),
    "llama2": (MISTRAL, "</s>", []),
    "qwen3": (QWEN3, "<|im_end|>", ["<|im_start|>"]),
    "always thinks": (ALWAYS_THINKS, "<|im_end|>", ["<|im_start|>"]),
    "glm": (GLM, "<|endoftext|>", ["[gMASK]", "<|user|>", "<|assistant|>", "<|system|>"]),
    "no end": (NO_END, "</s>", []),
    "no opening": (NO_OPENING, "</s>", []),
    "two ends": (TWO_ENDS, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
    "plain": (None, "</s>", []),
}
KEEPS_TURNS = ["chatml", "llama3", "gemma", "mistral", "llama2", "glm", "no opening", "two ends"]
BOS = "<s>"


@lru_cache
def made(family: str, *, adds: bool = False, side: str = "right") -> PreTrainedTokenizerFast:
    """A tokenizer with the family's tokens; `adds` makes it put BOS and EOS around a text."""
    template, eos, others = SPECIAL[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[BOS, eos, "<pad>", *others],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, "a\n\n\nb\n\nc\n\n\nd"], trainer)
    if adds:
        around = [(token, tokenizer.token_to_id(token)) for token in (BOS, eos)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A {eos}", special_tokens=around
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=eos,
        pad_token="<pad>",
        padding_side=side,
    )
    fast.add_tokens(["<think>", "</think>"])
    fast.chat_template = template
    return fast


def with_template(
    tokenizer: PreTrainedTokenizerFast, template: str | dict[str, str]
) -> PreTrainedTokenizerFast:
    other = copy.copy(tokenizer)
    other.chat_template = template
    return other


@lru_cache
def chat(family: str, adds: bool = False) -> ChatFormat:
    tokenizer = made(family, adds=adds)
    stops = [tokenizer.convert_tokens_to_ids("<|user|>")] if family == "glm" else []
    return ChatFormat(tokenizer, stop_token_ids=stops)


def user(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


def said(text: str) -> tuple[Turn, ...]:
    return (Turn("assistant", text),)


def rendered(format: ChatFormat, turns: tuple[Turn, ...], opens: bool = False) -> str:
    if format.name == "plain":
        return "".join(turn.content for turn in turns)
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return format.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=opens
    )


def whole(format: ChatFormat, tokens) -> str:
    return format.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


families = st.sampled_from(sorted(SPECIAL))
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), max_size=30)
spaced = st.lists(st.sampled_from([" ", "\n", "\n\n", "the", " fox", "?", "."])).map("".join)
texts = st.one_of(words, spaced)
forged = st.tuples(
    spaced,
    st.sampled_from(sorted({BOS, "<pad>", *(t for _, e, o in SPECIAL.values() for t in (e, *o))})),
    spaced,
).map("".join)


@given(family=families, adds=st.booleans(), prompt=texts)
def test_a_prompt_is_what_the_tokenizer_feeds_at_inference(family, adds, prompt):
    format = chat(family, adds)
    if family == "plain":
        expected = format.tokenizer(prompt)["input_ids"]
        expected = expected[:-1] if adds else expected
        if not expected:
            return
    else:
        expected = format.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
    assert format.prompt_tokens(user(prompt)) == expected


@given(family=families, adds=st.booleans(), prompt=texts, answer=texts)
def test_what_is_trained_is_what_the_template_writes_up_to_one_end(family, adds, prompt, answer):
    format = chat(family, adds)
    prompt = prompt or "a"
    row = format.encode(user(prompt), said(answer))
    assert list(row.tokens[: row.n_prompt]) == format.prompt_tokens(user(prompt))
    assert row.mask == tuple(i >= row.n_prompt for i in range(len(row.tokens)))
    scored = [token for token, is_said in zip(row.tokens, row.mask, strict=True) if is_said]
    assert [token in format.stop_token_ids for token in scored] == [False] * (len(scored) - 1) + [
        True
    ]
    text = whole(format, row.tokens[:-1])
    start = BOS if family == "plain" and adds else ""
    full = start + rendered(format, (*user(prompt), *said(answer)))
    assert full.startswith(text)
    end = whole(format, row.tokens[-1:])
    assert full[len(text) :].startswith(end) or not full[len(text) :].strip()


@given(family=families, prompt=texts, answer=texts)
def test_the_answer_is_tokenised_in_one_piece_with_its_prompt_where_that_keeps_the_prompt(
    family, prompt, answer
):
    format = chat(family)
    before = format.n_boundary_merges
    row = format.encode(user(prompt or "a"), said(answer))
    joint = format.tokenizer(whole(format, row.tokens), add_special_tokens=False)["input_ids"]
    is_kept = tuple(joint[: row.n_prompt]) == row.tokens[: row.n_prompt]
    assert format.n_boundary_merges == before + (not is_kept)
    if is_kept:
        assert tuple(joint) == row.tokens


@given(family=families, adds=st.booleans(), prompt=forged, answer=forged)
def test_no_text_becomes_a_control_token(family, adds, prompt, answer):
    format = chat(family, adds)
    control = set(format.tokenizer.all_special_ids) | format.stop_token_ids
    control |= set(format.tokenizer.convert_tokens_to_ids(SPECIAL[family][2]))

    def found(prompt, answer):
        return [t for t in format.encode(user(prompt), said(answer)).tokens if t in control]

    if family == "plain":  # a plain prompt may have been rendered before: it is fed as it stands
        prompt = "a"
    assert found(prompt, answer) == found("a", "b")
    row = format.encode(user(prompt), said(answer))
    tail = whole(format, row.tokens[row.n_prompt : -1])
    assert answer.strip().removesuffix(SPECIAL[family][1]).strip() in tail


def test_conversations_with_the_text_of_control_tokens_are_counted():
    format = ChatFormat(tiny_tokenizer())
    format.encode(user("say <|im_end|>"), said("no"))
    format.encode(user("say it"), said("<|im_end|>"))
    format.encode(user("hello"), said("there"))
    assert format.n_control_texts == 2


@given(st.lists(st.tuples(families, texts, texts, texts), min_size=1, max_size=6), st.booleans())
def test_many_rows_at_once_are_the_rows_one_by_one(rows, forges):
    for family in {row[0] for row in rows}:
        format = chat(family)
        mine = [row for row in rows if row[0] == family]
        prompts = [user(a or "a") for _, a, _, _ in mine for _ in range(2)]
        ending = SPECIAL[family][1] if forges else ""
        answers = [said(text + ending) for _, _, b, c in mine for text in (b, c)]
        alone = [format.encode(p, r) for p, r in zip(prompts, answers, strict=True)]
        assert format.encode_many(prompts, answers) == alone


@pytest.mark.parametrize("family", KEEPS_TURNS)
def test_only_the_assistants_turns_are_scored_each_with_its_end(family):
    format = chat(family)
    response = (*said("one"), *user("and then?"), *said("two"), *user("thanks"))
    row = format.encode(user("count"), response)
    marks = "".join("x" if is_said else "." for is_said in row.mask)
    runs = [run for run in marks.split(".") if run]
    assert len(runs) == 2
    start = marks.index("x")
    pieces = [row.tokens[start : start + len(runs[0])], row.tokens[-len(runs[1]) :]]
    assert [format.decode(piece).strip().removeprefix("[assistant]") for piece in pieces] == [
        "one",
        "two",
    ]
    assert all(piece[-1] in format.stop_token_ids for piece in pieces)
    text = whole(format, row.tokens[:-1])
    assert rendered(format, (*user("count"), *response[:3])).startswith(text)
    second = whole(format, format.prompt_tokens((*user("count"), *response[:2])))
    assert text.startswith(second)


def test_the_mask_is_that_of_transformers_where_a_template_marks_what_is_generated():
    marked = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    format = ChatFormat(with_template(made("chatml"), marked))
    response = (*said("one fox"), *user("and then?"), *said("two dogs"))
    row = format.encode(user("count"), response)
    messages = [{"role": t.role, "content": t.content} for t in (*user("count"), *response)]
    theirs = format.tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    n = len(row.tokens)
    assert list(row.tokens) == theirs["input_ids"][:n]
    assert [int(is_said) for is_said in row.mask] == theirs["assistant_masks"][:n]
    assert not any(theirs["assistant_masks"][n:])


@pytest.mark.parametrize("family", ["qwen3", "no end"])
def test_a_template_that_writes_earlier_turns_otherwise_is_refused_for_several(family):
    response = (*said("one"), *user("and then?"), *said("two"))
    with pytest.raises(ValueError, match=r"several turns needs a chat template that keeps earlier"):
        chat(family).encode(user("count"), response)


def test_a_thinking_template_may_drop_the_thoughts_of_the_prompts_earlier_turns():
    format = chat("qwen3")
    prompt = (*user("hi"), *said("<think>\nhm\n</think>\n\nhello"), *user("and?"))
    row = format.encode(prompt, said("<think>\nwell\n</think>\n\nbye"))
    answer = whole(format, row.tokens[row.n_prompt :])
    assert answer == "<think>\nwell\n</think>\n\nbye<|im_end|>"
    assert "hm" not in whole(format, row.tokens)
    think = format.tokenizer.convert_tokens_to_ids("<think>")
    assert row.tokens[row.n_prompt] == think


def test_an_empty_thought_that_the_template_writes_is_said_by_the_model_and_noted():
    format = chat("qwen3")
    row = format.encode(user("hi"), said("bye"))
    assert whole(format, row.tokens[row.n_prompt :]) == "<think>\n\n</think>\n\nbye<|im_end|>"
    assert any("counts as said by the model" in note for note in format.notes)


def test_a_thought_that_the_generation_prompt_opens_belongs_to_the_prompt():
    format = chat("always thinks")
    row = format.encode(user("hi"), said("<think>\nwell\n</think>\n\nbye"))
    assert whole(format, row.tokens[: row.n_prompt]).endswith("assistant\n<think>\n")
    assert whole(format, row.tokens[row.n_prompt :]) == "well\n</think>\n\nbye<|im_end|>"


def test_an_answer_must_continue_the_generation_prompt():
    tokenizer = made("chatml")
    other = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
    format = ChatFormat(with_template(tokenizer, other))
    assert any("otherwise than its generation prompt" in note for note in format.notes)
    assert format.prompt_tokens(user("hi"))
    with pytest.raises(ValueError, match="continuation of its own generation prompt"):
        format.encode(user("hi"), said("bye"))


def test_a_template_that_leaves_out_what_was_said_is_refused():
    drops = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
    format = ChatFormat(with_template(made("chatml"), drops))
    assert format.encode(user("hi"), said("bye"))
    with pytest.raises(ValueError, match="must write an answer as it was given"):
        format.encode(user("hi"), said("hm</think>bye"))


def test_names_and_tool_calls_reach_the_template():
    calls = CHATML.replace(
        "m['content'] +",
        "(m.get('name') or '') + m['content'] + (m['tool_calls'] | tojson"
        " if m['tool_calls'] else '') +",
    )
    call = {"type": "function", "function": {"name": "search", "arguments": {"q": "a <|im_end|>"}}}
    asked = (Turn("user", "hi", {"name": "Ada"}),)
    answer = (Turn("assistant", "", {"tool_calls": [call]}),)
    format = ChatFormat(with_template(made("chatml"), calls))
    row = format.encode(asked, answer)
    assert "Adahi" in whole(format, row.tokens)
    assert '"q": "a <|im_end|>"' in whole(format, row.tokens[row.n_prompt :])
    with pytest.raises(ValueError, match="must write the tool calls"):
        chat("chatml").encode(asked, answer)


def test_an_empty_answer_is_the_end_token_alone():
    row = chat("chatml").encode(user("hi"), said(""))
    assert sum(row.mask) == 1


def test_left_padding_and_truncation_of_the_tokenizer_change_nothing():
    tokenizer = with_template(made("chatml", side="left"), CHATML)
    expected = chat("chatml").encode(user("hello there"), said("fine"))
    tokenizer.backend_tokenizer.enable_padding(length=64, direction="left")
    tokenizer.backend_tokenizer.enable_truncation(3)
    format = ChatFormat(tokenizer)
    tokenizer.backend_tokenizer.enable_padding(length=64, direction="left")
    tokenizer.backend_tokenizer.enable_truncation(3)
    assert format.encode(user("hello there"), said("fine")) == expected
    assert ChatFormat(tokenizer).hash == chat("chatml").hash


def test_plain_text_has_one_start_and_one_end():
    format = chat("plain", adds=True)
    bos, eos = format.tokenizer.bos_token_id, format.tokenizer.eos_token_id
    for prompt in ("the fox", "<s>the fox"):
        for answer in (" jumps", " jumps</s>"):
            row = format.encode(user(prompt), said(answer))
            assert row.tokens.count(bos) == row.tokens.count(eos) == 1
            assert whole(format, row.tokens) == "<s>the fox jumps</s>"


@pytest.mark.parametrize("prompt", [(Turn("system", "x"), *user("hi")), (*user("a"), *said("b"))])
def test_plain_text_has_no_place_for_more_turns_and_says_what_has(prompt):
    with pytest.raises(ValueError, match=r"one user turn.*found turns of.*--chat-template chatml"):
        chat("plain").prompt_tokens(prompt)
    format = ChatFormat(made("plain"), "chatml")
    assert format.encode((*prompt, *user("c")), said("d"))


def test_chatml_without_its_tokens_says_so_and_ends_with_the_tokenizers_end():
    format = ChatFormat(made("plain"), "chatml")
    assert any("ordinary text" in note for note in format.notes)
    row = format.encode(user("hi"), (*said("a"), *user("b"), *said("c")))
    assert row.tokens.count(format.tokenizer.eos_token_id) == 4
    assert format.name == "chatml"


def test_a_template_may_come_from_a_file(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(LLAMA3)
    format = ChatFormat(made("llama3"), str(file))
    assert format.name == "mine.jinja"
    assert format.encode(user("a"), said("b")) == chat("llama3").encode(user("a"), said("b"))
    with pytest.raises(FileNotFoundError, match="must be auto, plain, chatml or a file"):
        ChatFormat(made("llama3"), str(tmp_path / "none.jinja"))


def test_the_template_in_use_travels_with_the_tokenizer_and_leaves_the_given_one_alone():
    tokenizer = made("plain")
    assert "im_start" in ChatFormat(tokenizer, "chatml").tokenizer.chat_template
    assert ChatFormat(made("chatml"), "plain").tokenizer.chat_template is None
    assert tokenizer.chat_template is None
    assert made("chatml").chat_template == CHATML


def test_a_template_that_refuses_says_why_and_what_to_do():
    with pytest.raises(ValueError, match="refuses turns of user: not today"):
        ChatFormat(with_template(made("chatml"), REFUSES))
    with pytest.raises(ValueError, match=r"System role not supported; put the system turn"):
        chat("gemma").prompt_tokens((Turn("system", "x"), *user("hi")))
    with pytest.raises(ValueError, match="tokenizer:1: a chat template must be Jinja"):
        ChatFormat(with_template(made("chatml"), "{% for m in messages %}{{ m.content + 1 }}"))


def test_rows_are_named_in_errors():
    with pytest.raises(ValueError, match=r"^pairs.jsonl:2: a response needs to begin with"):
        chat("chatml").encode_many(
            [user("a"), user("b")], [said("x"), ()], origins=["pairs.jsonl:1", "pairs.jsonl:2"]
        )


def test_a_row_without_any_prompt_is_named():
    with pytest.raises(ValueError, match=r"^a:1: a prompt needs at least one token"):
        chat("plain").encode_many([user("")], [said("b")], origins=["a:1"])
    assert chat("plain", adds=True).encode(user(""), said("b")).n_prompt == 1


def test_named_templates_use_the_default_and_stay_with_the_tokenizer():
    named = {"default": CHATML, "tool_use": LLAMA3}
    format = ChatFormat(with_template(made("chatml"), named))
    assert format.encode(user("a"), said("b")) == chat("chatml").encode(user("a"), said("b"))
    assert format.tokenizer.chat_template == named
    with pytest.raises(ValueError, match="templates named tool_use, and none is the default"):
        ChatFormat(with_template(made("chatml"), {"tool_use": LLAMA3}))


def test_a_tokenizer_without_an_end_token_is_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=made("plain").backend_tokenizer)
    for template in ("auto", "chatml"):
        with pytest.raises(ValueError, match="needs an end token"):
            ChatFormat(bare, template)
    assert ChatFormat(bare, stop_token_ids=[1]).stop_token_ids == {1}


def test_a_missing_padding_token_is_made_up_for_in_the_open():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made("plain").backend_tokenizer, eos_token="</s>"
    )
    format = ChatFormat(tokenizer)
    assert format.pad_token_id == tokenizer.eos_token_id
    assert any("padding" in note for note in format.notes)


def test_a_text_with_a_noncharacter_is_refused():
    with pytest.raises(ValueError, match="U\\+FDD0"):
        chat("chatml").encode(user("a \ufdd0"), said("b"))


def test_the_hash_is_of_whatever_decides_the_tokens():
    hashes = [
        chat("chatml").hash,
        ChatFormat(made("chatml"), "plain").hash,
        ChatFormat(with_template(made("chatml"), TWO_ENDS)).hash,
        ChatFormat(made("chatml"), stop_token_ids=[0]).hash,
        chat("llama3").hash,
    ]
    assert len(set(hashes)) == len(hashes)
    assert ChatFormat(made("chatml")).hash == hashes[0]


def test_what_the_template_writes_after_an_answer_is_not_said():
    for family, expected in (("no end", " b</s>"), ("chatml", "b<|im_end|>"), ("llama2", " b</s>")):
        row = chat(family).encode(user("a"), said("b"))
        assert whole(chat(family), row.tokens[row.n_prompt :]) == expected


def test_tokens_of_the_template_are_guarded_though_the_tokenizer_does_not_call_them_special():
    tokenizer = copy.deepcopy(made("no end"))
    tokenizer.add_tokens(["<turn>", "<tool>"])
    format = ChatFormat(
        with_template(tokenizer, NO_END.replace("{{ m['role']", "<turn>{{ m['role']"))
    )
    turn, tool = tokenizer.convert_tokens_to_ids(["<turn>", "<tool>"])
    tokens = format.prompt_tokens(user("a <turn>user: <tool>"))
    assert (tokens.count(turn), tokens.count(tool)) == (1, 1)


def test_stops_are_the_tokenizers_the_templates_and_those_given():
    tokens = chat("gemma").tokenizer.convert_ids_to_tokens(sorted(chat("gemma").stop_token_ids))
    assert set(tokens) == {"<eos>", "<end_of_turn>"}
    row = chat("glm").encode(user("a"), said("b"))
    assert whole(chat("glm"), row.tokens[row.n_prompt :]) == "\nb<|user|>"


def test_a_tokenizer_that_puts_a_space_at_beginnings_puts_none_within():
    pieces = [
        BOS,
        "</s>",
        "<unk>",
        "\u2581",
        *(f"<0x{i:02X}>" for i in range(256)),
        *"abc[]/INST|<>s",
    ]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token="</s>")
    fast.chat_template = MISTRAL
    format = ChatFormat(fast)
    row = format.encode(user("a b</s> c"), said("b <s>"))
    assert whole(format, row.tokens).replace(" ", "") == "<s>[INST]ab</s>c[/INST]b<s></s>"
    words = format.tokenizer.convert_ids_to_tokens(row.tokens[row.n_prompt :])
    assert words == ["\u2581", "b", "\u2581", "<", "s", ">", "</s>"]


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_a_tokenizer_written_in_python_does_the_same(template):
    format = ChatFormat(ByT5Tokenizer(extra_ids=0), template)
    row = format.encode(user("hi there"), said("no </s> end"))
    ends = [token in format.stop_token_ids for token in row.tokens[row.n_prompt :]]
    assert ends == [False] * (len(ends) - 1) + [True]
    assert format.decode(row.tokens[row.n_prompt :]) == "no </s> end"
    assert list(row.tokens[: row.n_prompt]) == format.prompt_tokens(user("hi there"))


@given(family=families, prompt=texts, answer=texts)
def test_pieces_put_together_are_the_whole_text(family, prompt, answer):
    format = chat(family)
    tokens = format.encode(user(prompt or "a"), said(answer)).tokens
    pieces = format.pieces(tokens)
    assert len(pieces) == len(tokens)
    assert "".join(pieces).replace("\ufffd", "") == whole(format, tokens).replace("\ufffd", "")


@given(family=families, answer=texts)
def test_decode_gives_the_answer_back(family, answer):
    format = chat(family)
    row = format.encode(user("a"), said(answer))
    assert answer.strip() in format.decode(row.tokens[row.n_prompt :])
