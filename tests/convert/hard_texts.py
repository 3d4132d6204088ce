"""Texts that tokenizers disagree on: many scripts, emoji, code, runs of blanks, digits, and look-alikes of tokens."""

from __future__ import annotations

import random
import unicodedata

LINES = (
    "the quick brown fox don't I'll WE'VE they're it's l'eau naïve façade Straße Übermut ñandú coöperate e-mail",
    "можно Привет мир нещо на Български Ελλάδα γειά שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก កាន់តែ",
    "你好 世界 工作 東京タワー こんにちは カタカナ 안녕하세요 세계 Việt Nam čeština Łódź İstanbul ǅungla ﬁnance Ⅷ ½ ²",
    "1234567890 3.14159 0xFF 1,000,000 v1.2.3 2024-05-06 12:34:56 foo_bar fooBar FOO_BAR HTTPServer __init__",
    "user@example.org https://example.org/a?b=c#d C:\\Temp\\x /usr/bin/env $HOME {json: [1, 2]} <div class='x'> </div>",
    "a=b==c !=> -> ::= ... !!! ??? ~~~ ### ---- ==== **bold**",
)
WORDS = [word for line in LINES for word in line.split()]
EMOJI = ["🙂", "😶‍🌫️", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇳🇴", "🦙🦙", "✅", "🚀", "❤️", "☃", "🤷🏿‍♂️"]
SPACES = [
    " ",
    "  ",
    "   ",
    "        ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\t\t",
    " \n",
    "\n ",
    " \t ",
    "\n\n\n",
    "\u00a0",
    "\u3000",
]
CODE = [
    "def f(x: int) -> str:\n    return f'{x!r}'  # done\n",
    'for (int i = 0; i < n; ++i) {\n\tprintf("%d\\n", a[i]);\n}\n',
    "SELECT * FROM t WHERE a >= 10 AND b != 'x';",
    "if (a&&b||!c){d^=e<<2;}",
    '{"k": [true, null, -1.5e-3]}',
    "<script>alert('x')</script>",
    "\\frac{a}{b} \\sum_{i=0}^{n} x_i^2",
    "rm -rf ./build && make -j8 >log 2>&1",
]
LOOK_ALIKES = [
    "[respond]",
    " [respond]",
    "[ respond ]",
    "[Respond]",
    "[respond",
    "respond]",
    "［respond］",
    "Ġ[respond]",
    "▁[respond]",
    "[Requests with safety concerns]",
    " [Requests  with safety concerns]",
    "[refuse]",
    "<|eot_id|",
    "<s >",
    "<|im_start |>",
    "[INST]",
    "<0x41>",
    "<unk >",
]


def hard_texts(n: int = 4_000, seed: int = 20240501, *, simple: bool = False) -> list[str]:
    """`n` different texts, NFC-normalized, which llama.cpp leaves to its caller.

    `simple` texts have no combining marks, and blanks between all words.
    """
    rng = random.Random(seed)
    pools = [WORDS] * 6 + [EMOJI, SPACES, SPACES, CODE, LOOK_ALIKES]
    pools = [[part for part in pool if not (simple and _has_marks(part))] for pool in pools]
    texts = {part: None for pool in pools for part in pool if not part.isspace()}
    texts |= {f"a{blank}b": None for blank in SPACES}
    while len(texts) < n:
        parts = [rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 12))]
        glue = rng.choice([" " if simple else "", " ", " ", " ", rng.choice(SPACES)])
        texts.setdefault(unicodedata.normalize("NFC", glue.join(parts)))
    return list(texts)


def _has_marks(text: str) -> bool:
    return any(unicodedata.category(c).startswith("M") for c in unicodedata.normalize("NFC", text))
