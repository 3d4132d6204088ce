"""Finding the control tokens, and writing them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gguf import TokenType

from refusal_edge.byte_level import BYTE_TO_CHAR
from refusal_edge.convert.control import PRESETS, find_control_tokens
from refusal_edge.convert.vocab import AddedToken, Vocab
from refusal_edge.errors import ConversionError

COCONOT = [role.text for role in PRESETS["coconot-5"]]
N_BASE = 258


def bpe(*added: str | AddedToken) -> Vocab:
    """A byte-level vocabulary with some added tokens behind its 258 pieces."""
    tokens = [t if isinstance(t, AddedToken) else AddedToken(N_BASE + i, t) for i, t in enumerate(added)]
    return Vocab(
        model="gpt2",
        pre="llama-bpe",
        tokens=[*(c.encode() for c in [*BYTE_TO_CHAR, "th", "the"]), *(t.content.encode() for t in tokens)],
        types=[1] * N_BASE + [int(TokenType.USER_DEFINED)] * len(tokens),
        merges=["t h", "th e"],
        added=tokens,
    )


def test_the_released_five_category_model() -> None:
    """Ids, order, titles and texts of DESIGN.md: leading space kept, matched without it."""
    control = find_control_tokens(bpe(*(f" {text}" for text in COCONOT)))
    assert [(c.slug, c.title, c.id - N_BASE, c.text) for c in control] == [
        ("humanizing", "Humanizing requests", 0, " [Humanizing requests]"),
        ("incomplete", "Incomplete requests", 1, " [Incomplete requests]"),
        ("indeterminate", "Indeterminate requests", 2, " [Indeterminate requests]"),
        ("safety", "Requests with safety concerns", 3, " [Requests with safety concerns]"),
        ("unsupported", "Unsupported requests", 4, " [Unsupported requests]"),
        ("respond", "Respond", 5, " [respond]"),
    ]
    assert control.warnings == ()


@pytest.mark.parametrize("texts", [(" [respond]", " [refuse]"), ("[refuse]", "[respond]")])
def test_the_released_single_category_model(texts: tuple[str, str]) -> None:
    vocab = bpe(*texts)
    for preset in (None, "single"):
        control = find_control_tokens(vocab, preset=preset)
        assert [c.slug for c in control] == ["refuse", "respond"]
        assert [vocab.added[c.id - N_BASE].content.strip() for c in control] == ["[refuse]", "[respond]"]


def test_tokens_named_by_id_and_by_text() -> None:
    vocab = bpe("<|reserved_0|>", " [no way]", "[yes]")
    control = find_control_tokens(vocab, tokens=[f"respond={N_BASE}", "medical:Medical advice=[no way]"])
    assert control.respond.text == "<|reserved_0|>"
    assert [(c.slug, c.title, c.text) for c in control.categories] == [("medical", "Medical advice", " [no way]")]


def test_named_tokens_are_added_to_those_found() -> None:
    """README's example: naming some roles must not leave the other tokens visible and within reach."""
    vocab = bpe(*(f" {text}" for text in COCONOT))
    control = find_control_tokens(vocab, tokens=[f"safety={N_BASE + 3}", "respond= [respond]"])
    assert control == find_control_tokens(vocab)
    for only in ("respond= [respond]", f"danger={N_BASE + 3}"):
        named = find_control_tokens(vocab, tokens=[only])
        assert sorted(named.ids) == list(range(N_BASE, N_BASE + 6))
        assert named.warnings == ()


def test_a_named_respond_token_leaves_its_neighbours_to_be_found() -> None:
    vocab = bpe("[Medical]", "[Legal]", "[go on]")
    control = find_control_tokens(vocab, tokens=["respond=[go on]"])
    assert [(c.slug, c.id) for c in control] == [("medical", 258), ("legal", 259), ("respond", 260)]


def test_tokens_that_keep_no_role_are_said() -> None:
    vocab = bpe("[Medical]", " [Legal]", "[go on]", AddedToken(N_BASE + 3, "[control_7]", special=True), "<|x|>")
    control = find_control_tokens(vocab, tokens=["respond=[go on]", "medical=[Medical]"])
    assert control.ids == [258, 260]
    (warning,) = control.warnings
    assert "have no role: 259 ' [Legal]'; they show in answers, and any prompt can hold them" in warning
    assert "--token SLUG=259" in warning
    (warning,) = find_control_tokens(bpe("[Unsupported requests]", "[refuse]", "[respond]"), preset="single").warnings
    assert "258 '[Unsupported requests]'" in warning


def test_a_respond_token_that_was_given_away_is_named() -> None:
    vocab = bpe(*(f" {text}" for text in COCONOT))
    with pytest.raises(ConversionError, match=r"no respond token found: token 263 .* given to 'safety'"):
        find_control_tokens(vocab, tokens=["safety=263"])
    swapped = find_control_tokens(vocab, tokens=["safety=263", "respond=261"])
    assert "token 263 ' [respond]' was given to 'safety' with --token" in swapped.warnings


@pytest.mark.parametrize(
    ("token_id", "use"),
    [(258, "the bos token"), (259, "the eos token"), (260, "the eot token"), (261, "a mark of chat formats")],
)
def test_tokens_that_conversations_are_made_of_have_no_role(token_id: int, use: str) -> None:
    vocab = bpe("<s>", "<end>", "<turn>", "<|start_header_id|>", "[refuse]", "[respond]", "[PAD]")
    vocab = replace(vocab, special_ids={"bos": 258, "eos": 259, "eot": 260, "pad": 264})
    with pytest.raises(ConversionError, match=f"token {token_id} '.*' is {use}.*must have no other use"):
        find_control_tokens(vocab, tokens=[f"respond={token_id}"])
    assert find_control_tokens(vocab, tokens=["respond=264"]).respond.id == 264  # padding is in no prompt


def test_named_tokens_win_over_what_is_found() -> None:
    vocab = bpe("[refuse]", "[respond]", "[other respond]")
    control = find_control_tokens(vocab, preset="single", tokens=[f"respond={N_BASE + 2}"])
    assert control.respond.text == "[other respond]"
    renamed = find_control_tokens(vocab, tokens=["no:Not this=[refuse]"])
    titles = {token.slug: token.title for token in renamed}
    assert titles == {"no": "Not this", "other_respond": "other respond", "respond": "Respond"}


def test_bracketed_neighbours_are_categories_and_said_so() -> None:
    vocab = bpe("[PAD]", "[Medical advice]", "[refuse]", "[respond]", "[Legal (EU) advice]", "[法律]", "<|x|>", "[far]")
    control = find_control_tokens(vocab)
    assert [(c.slug, c.title) for c in control.categories] == [
        ("medical_advice", "Medical advice"),
        ("refuse", "Refuse"),
        ("legal_eu_advice", "Legal (EU) advice"),
        ("category_263", "法律"),
    ]
    *taken, left_out = control.warnings
    assert len(taken) == 3
    assert "name the tokens with --token" in taken[0]
    assert left_out.startswith("added tokens that look like control tokens but have no role: 265 '[far]'; ")


def test_instruction_markers_are_not_categories() -> None:
    control = find_control_tokens(bpe("[INST]", "[/INST]", "[refuse]", "[respond]", "[TOOL_CALLS]"))
    assert [c.slug for c in control] == ["refuse", "respond"]


@pytest.mark.parametrize(
    ("added", "options", "message"),
    [
        ((), {}, "no control tokens found; the tokenizer has no added tokens"),
        (
            ("<|x|>", "[y]"),
            {},
            r"no control tokens found; added tokens: 258 '<\|x\|>', 259 '\[y\]'; name them with --token",
        ),
        (
            ("[refuse]", "x"),
            {},
            r"no respond token found; recognised: refuse 258 '\[refuse\]'; .*--token respond=ID .*--preset coconot-5",
        ),
        (("[respond]", "x"), {}, "no category token found.*--token SLUG=ID"),
        (("[refuse]", "[respond]"), {"preset": "coconot-5"}, r"'\[Humanizing requests\]' \(humanizing\)"),
        (("[refuse]", "[respond]"), {"preset": "nine"}, "--preset: expected one of coconot-5, single, got 'nine'"),
        (("[respond]", " [respond]", "[refuse]"), {}, r"tokens 258 and 259 both read '\[respond\]'"),
        (("a", "b"), {"tokens": ["respond=258", "x=258"]}, "token 258 'a' has two roles: 'respond' and 'x'"),
        (("a", "b"), {"tokens": ["x=258", "x=259"]}, "role 'x' is given to token 258 and to token 259"),
        (("a",), {"tokens": ["respond"]}, "expected ROLE=ID or ROLE=TEXT, got 'respond'"),
        (("a",), {"tokens": ["=258"]}, "expected ROLE=ID"),
        (("a",), {"tokens": ["respond="]}, "expected ROLE=ID"),
        (("a",), {"tokens": ["respond=nothing"]}, "no added token has this text; added tokens: 258 'a'"),
        (("a",), {"tokens": ["respond=259"]}, "token ids go from 0 to 258"),
        (("a",), {"tokens": ["respond=99999999999"]}, "no added token has this text"),
        (("a",), {"tokens": ["respond=257"]}, "token 257 'the' is an ordinary piece"),
        (("a", "b"), {"tokens": ["Bad Slug=258"]}, "lower-case letters, digits and _"),
        (("a", "b"), {"tokens": ["rule=258"]}, "is the name of a policy field"),
        ((*(f"[c{i}]" for i in range(65)), "[respond]"), {}, "65 category tokens found, at most 64 are allowed"),
    ],
)
def test_what_cannot_be_found_is_one_clear_line(
    added: tuple[str, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConversionError, match=message) as caught:
        find_control_tokens(bpe(*added), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_long_list_of_added_tokens_is_cut() -> None:
    with pytest.raises(ConversionError, match="added tokens: 988 more, 1246 't988'"):
        find_control_tokens(bpe(*(f"t{i}" for i in range(1000))))


def test_doubts_are_said() -> None:
    long = "[" + "Requests with very special safety"[:32] + "]"
    vocab = bpe("[respond]", AddedToken(N_BASE + 1, "[refuse]", lstrip=True), AddedToken(N_BASE + 2, long))
    control = find_control_tokens(vocab, tokens=["respond=[respond]", "refuse=[refuse]", f"long={long}"])
    assert len(control.warnings) == 2
    assert "lstrip or rstrip" in control.warnings[0]
    assert f"has {len(long)} bytes" in control.warnings[1]
    fits = "[" + "x" * 30 + "]"
    assert len(fits) == 32
    assert find_control_tokens(bpe("[respond]", fits), tokens=["respond=[respond]", f"x={fits}"]).warnings == ()


def test_sealing_changes_only_the_control_tokens() -> None:
    vocab = bpe("<|x|>", " [refuse]", " [répond]")
    control = find_control_tokens(vocab, tokens=["respond= [répond]", "refuse= [refuse]"])
    sealed = control.seal(vocab)
    assert sealed.tokens[:-2] == vocab.tokens[:-2]
    assert [t.decode() for t in sealed.tokens[-2:]] == ["Ġ[refuse]", "Ġ[rÃ©pond]"]
    assert sealed.types[-3:] == [TokenType.USER_DEFINED, TokenType.NORMAL, TokenType.NORMAL]
    assert control.seal(vocab, "control").tokens == control.seal(sealed, "user").tokens == vocab.tokens
    assert control.seal(vocab, "control").types[-2:] == [TokenType.CONTROL] * 2
    with pytest.raises(ConversionError, match="--token-type: expected one of sealed, control, user"):
        control.seal(vocab, "hf")


def test_sealing_for_sentencepiece_spells_spaces_as_it_does() -> None:
    vocab = replace(bpe(" [no way]", "[respond]"), model="llama", merges=None)
    control = find_control_tokens(vocab, tokens=["no= [no way]", "respond=[respond]"])
    assert control.seal(vocab).tokens[-2].decode() == "▁[no▁way]"


def test_what_merges_can_form_is_known_without_trying() -> None:
    vocab = bpe("[respond]", AddedToken(N_BASE + 1, "the"))
    control = find_control_tokens(vocab, tokens=["respond=[respond]", f"the={N_BASE + 1}"])
    assert [t.slug for t in control.formed_by_merging(vocab)] == ["the"]
    pieces = replace(bpe("[respond]", "[the]", "xthe"), model="llama", merges=None)
    control = find_control_tokens(pieces, tokens=["respond=[respond]", "the=[the]", "xthe=xthe"])
    assert [t.slug for t in control.formed_by_merging(pieces)] == ["xthe"]  # x + the
