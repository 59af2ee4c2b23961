"""Words looked up: the ids are those of the tokenizer, whatever the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from melior.data import words
from melior.data.words import GPT2, LLAMA3, QWEN2
from tests.tiny import CORPUS

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|im_end|>\n", "<x>"]
ALPHABET = [
    *"aZéßжא中アक7²½٣Ⅷ \t\n\r\xa0\u2003\u3000\x85\x1c\u200b\u200d\u180e.,!?'\"“—…_-",
    "\u0301", "\ufe0f", "\ue000", "\uffff", "ſ", "\u212a", "🦊", "𝒳", "𝟘", "\U0001e94b", "'S",
    "'ll", "'ve", "   ", "\r\n", "quick", " brown", " 1234", *SPECIAL, "<|im", "é",
    "fi\u0323\u0307",
]  # fmt: skip


def split(expression: str) -> pre_tokenizers.PreTokenizer:
    apart = pre_tokenizers.Split(Regex(expression), "isolated")
    return pre_tokenizers.Sequence([apart, pre_tokenizers.ByteLevel(False, use_regex=False)])


CUTS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "gpt2 split": split(GPT2),
    "llama3": split(LLAMA3),
    "qwen2": split(QWEN2),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


def backend(cut: pre_tokenizers.PreTokenizer, *, composes: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut
    tokenizer.normalizer = normalizers.NFC() if composes else None
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, "12 123 1234 it's we'll  \n\n  \r\n"], trainer)
    return tokenizer


BACKENDS = {name: backend(cut, composes=name == "qwen2") for name, cut in CUTS.items()}


def slow(name: str, texts: list[str]) -> list[list[int]]:
    return [BACKENDS[name].encode(text, add_special_tokens=False).ids for text in texts]


@pytest.fixture(scope="module", params=BACKENDS)
def both(request):
    found = words.words(BACKENDS[request.param])
    assert found is not None
    return request.param, found


@given(texts=st.lists(st.lists(st.sampled_from(ALPHABET), max_size=12).map("".join), max_size=4))
def test_the_ids_are_those_of_the_tokenizer(both, texts):
    name, found = both
    assert found(texts) == slow(name, texts)


def test_every_settled_character_is_cut_as_the_tokenizer_cuts_it(both):
    name, found = both
    settled = [c for c in map(chr, range(0x10000)) if not words._unsettled().search(c)]
    assert len(settled) > 40_000
    text = "".join(f"{character}a1 {character}." for character in settled if character > "\u02ff")
    lines = [text[i : i + 7000] for i in range(0, len(text), 140_000)]  # a part of them
    assert found(lines) == slow(name, lines)


def test_a_text_on_which_versions_of_unicode_disagree_is_left_to_the_tokenizer(both):
    _, found = both
    assert found._is_plain("“Tout est bien” — 好 🦊")
    for character in ("\u200b", "\u180e", "\ufdd0", "\u1c80", "𝒳", "\ud800"):
        assert not found._is_plain(f"a{character}b")


def test_words_are_forgotten_where_there_are_too_many(both, monkeypatch):
    monkeypatch.setattr(words, "MOST_WORDS", 3)
    name, _ = both
    found = words.words(BACKENDS[name])
    texts = ["the quick brown fox", "jumps over <x>the lazy dog", "the fox" + "x" * 100]
    assert found(texts) == slow(name, texts)
    assert len(found._table) <= 3
    assert not any(len(word) > words.LONGEST for word in found._table)


def other(**changes: object) -> Tokenizer:
    made = backend(pre_tokenizers.ByteLevel(add_prefix_space=False))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def with_added(*tokens: AddedToken) -> Tokenizer:
    made = other()
    made.add_tokens(list(tokens))
    return made


@pytest.mark.parametrize(
    "tokenizer",
    [
        other(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        other(pre_tokenizer=pre_tokenizers.Whitespace()),
        other(pre_tokenizer=None),
        other(pre_tokenizer=split(r"\p{L}+|\s")),
        other(normalizer=normalizers.Lowercase()),
        other(model=models.BPE(dropout=0.1)),
        other(model=models.WordLevel({"a": 0}, unk_token="a")),
        with_added(AddedToken("<y>", lstrip=True)),
        with_added(AddedToken("word", single_word=True)),
        with_added(AddedToken("<y>", normalized=True)),
    ],
)
def test_a_tokenizer_that_cuts_otherwise_is_asked_itself(tokenizer):
    assert words.words(tokenizer) is None
