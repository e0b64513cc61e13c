"""The text made to hurt: what tokenizers are known to disagree about, in many short pieces.

Short, so that a difference shows itself: the text is then the explanation. Everything here is a
constant or made from a checkpoint's own tokens; two runs give the same list.
"""

import unicodedata
from collections.abc import Iterable, Sequence

_RUNS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33)

_WORDS = (
    "",
    "Hello, world! It's 3.14159 or 1,234,567.",
    "The river ran quietly through the old town, past the mill and the market.",
    "internationalization antidisestablishmentarianism pneumonoultramicroscopic",
    "ALL CAPS camelCase PascalCase snake_case kebab-case SCREAMING_SNAKE iPhone eBay McDonald",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "abababababababababababab",
    "the the  the   the",
    " leading",
    "trailing ",
    "  two leading,   three inside, two trailing  ",
    "it's I'm you're they've we'll he'd don't",
    "IT'S I'M YOU'RE THEY'VE WE'LL HE'D DON'T",
    "'s 't 're 've 'm 'll 'd 'S 'LL x's X'LL 'sx ''s it\u2019s we\u2019ll",
    "https://user:pw@example.com:8080/a/b.html?q=1&r=%20#top mailto:someone@example.org",
    "C:\\Users\\name\\file.txt /usr/local/lib/python3.12/site-packages ~/.bashrc",
)
_CODE = (
    "def f(x):\n    return x ** 2  # square\n",
    "\tif (a && !b) {\n\t\treturn a[i]->next;\n\t}\n",
    "for(int i=0;i<n;++i){sum+=a[i]*b[i];}",
    "SELECT * FROM t WHERE a >= 10 AND b <> 'x';--",
    '{"key": [1, 2.5e-10, null, true], "s": "\\ud83d\\ude00\\n"}',
    "<div class=\"a\"><!-- c --><a href='#'>&nbsp;</a></div>",
    "x = lambda *a, **k: {**k, 'n': len(a)}\r\n\r\n\r\n@decorator\r\nclass A: ...",
    "#include <stdio.h>\n\n\nint main(void) { return 0; }\n\n",
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n```py\nprint(1)\n```\n\n> quote\n\n* * *\n",
    "\\begin{align} E &= mc^2 \\\\ \\int_0^\\infty e^{-x^2}dx &= \\frac{\\sqrt{\\pi}}{2} x",
    "// TODO: fix\n/* multi\n   line */\n<?php echo $x; ?>\n#!/bin/sh\n",
    "0xDEADBEEF 0b1010 1_000_000 1e9 -1 +1 .5 5. 1.2.3 v1.2.3-rc.1",
)
_SCRIPTS = (
    "naïve café, Übergröße, mañana, œuvre, Łódź, Đặng, Þór, ığdır, Ǆ ǅ ǆ, ẞ ß ſ",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία. Ωκεανός ΣΊΣΥΦΟΣ",
    "Съешь же ещё этих мягких французских булок. Ґанок їжак ўсё",
    "Արևելք արևմուտք, Հայաստան",
    "დედაენა ვეფხისტყაოსანი ᲓᲔᲓᲐ",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "נִקּוּד שָׁלוֹם עֲלֵיכֶם",
    "نص حكيم له سر قاطع وذو شأن عظيم، مَكْتُوبٌ بِالتَّشْكِيلِ",
    "۱۲۳۴۵ ٠١٢٣٤ ०१२३४ ๐๑๒๓๔ ０１２３４ ²³¹ ½⅓ ⅷⅨ ①⑳ 𝟘𝟙𝟚",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "আমি তোমাকে ভালোবাসি। தமிழ் மொழி తెలుగు ಕನ್ನಡ മലയാളം සිංහල ਪੰਜਾਬੀ ગુજરાતી",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "ພາສາລາວ မြန်မာဘာသာ ភាសាខ្មែរ བོད་ཡིག አማርኛ ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ",
    "漢字とかな、カタカナ。中文簡體字，繁體字。〇〡〢",
    "吾輩は猫である。名前はまだ無い。ｶﾀｶﾅ ＦＵＬＬ　ｗｉｄｔｈ",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다",
    "ㄱㄴㄷ ㅏㅑㅓ ㅋㅋㅋㅋㅋ",
    "𠀀𠮷野家 𝒜𝓁𝑔𝑒𝒷𝓇𝒶 𐍈 𓀀 𒀀 🜁",
    "tiếng Việt: Tôi yêu bạn. Türkçe: İstanbul ışık",
    "mixedсмешанный混合혼합خليط123abcабв",
)
_SIGNS = (
    "🙂",
    "🙂🙂🙂 👍🏽 👩‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈 🇪🇺🇩🇪 1️⃣ ☎︎ ☎️ ❤️‍🔥 🫨 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "a🙂b 🙂c d🙂",
    "→ ⇒ ∑ ∫ √ ∞ ≠ ≤ ± × ÷ ° § ¶ © ® ™ € £ ¥ ₿ ½ … – — ‘’ “” «» ‹› „‚ • ‣ ■ □ ▲ ♠ ♪ ✓ ✗",
    "<>{}[]()#@$%^&*~`|\\/\"'=+-_;:",
    "!!! ??? ... ,,, ;;; ::: --- ___ === +++ *** /// \\\\\\ ||| &&& %%% $$$ ### @@@ ~~~ ^^^ ```",
    "(a)[b]{c}<d>\"e\"'f'`g`",
    "a.b,c;d:e!f?g-h_i/j\\k|l&m%n$o#p@q~r^s*t+u=v",
    "……。、；：？！（）【】《》「」『』〜・",
    "-- --- ---- ----- -------- ---------------- ======== ________",
    "\\ud800 \\udfff \\u0000 \\x00 %00 &#0; &#xD800;",
    "$100 €5,00 50% #1 @me R&D 24/7 9:30 1-2 (555) 123-4567",
)
_INVISIBLE = (
    "a\u00a0b\u00a0\u00a0c",
    "a\u2009b\u202fc\u3000d\u2003e",
    "a\u200bb\u200cc\u200dd\u2060e\ufefff",
    "\ufeffbegins with a byte order mark",
    "a\u00adb\u034fc\u061cd\u180ee",
    "\u202aleft\u202c \u202eright\u202c \u2066isolate\u2069",
    "a\u2028b\u2029c\u0085d\u000be\u000cf",
    "\x00",
    "a\x00b\x01c\x02d\x07e\x08f\x1bg\x1ch\x1di\x1ej\x1fk\x7fl\x80m\x9fn",
    "\ue000\uf8ff\U000f0000\U0010fffd",
    "\ufffd\ufffe\uffff\U0001ffff",
    "e\u0301\u0302\u0303\u0304\u0327",
    "\u0301starts with a mark",
    "Z\u0351\u0340A\u0334L\u0361G\u0337O\u0338",
)
_DECOMPOSED = (
    "naïve café, Übergröße, mañana",
    "Ωκεανός ὴν ᾧ",
    "ещё этих йод її",
    "이것은 한국어",
    "がぎぐげご パピプペポ",
    "Đặng Việt Nam",
    "Å ﬁ ²",
)
"""Composed here; asked in both forms, as separate texts."""

_CHARACTERS = "\u212b\u2126\u0958\u0344\u1fc1\u2adc\ufb1d\U0001d15e"
"""Characters whose NFC form is another, though none of them is a composition of what was typed."""


def _blocks() -> list[str]:
    """A few characters of every 256 that Unicode 3.2 knows, which Python has beside the newest."""
    category = unicodedata.ucd_3_2_0.category
    texts = []
    for start in range(0x100, 0x30000, 256):
        known = [c for c in map(chr, range(start, start + 256)) if category(c) not in _UNKNOWN]
        if known:
            texts.append("".join(known[:: max(1, len(known) // 6)]))
    return texts


_MANY = 100  # tokens, from which on a text shows several things
_UNKNOWN = ("Cn", "Cs", "Co")


def hurting_texts(tokens: Iterable[str] = (), more: Sequence[str] = ()) -> list[str]:
    """Texts to encode, each once, in a fixed order.

    Args:
        tokens: the texts of a checkpoint's added and special tokens. Each is put between words,
            beside spaces and newlines, and doubled.
        more: further texts, such as what a chat template makes.

    """
    texts = [*_WORDS, *_CODE, *_SCRIPTS, *_SIGNS, *_INVISIBLE]
    texts += map(chr, range(256))
    for run in _RUNS:
        for space in (" ", "\n", "\t", "\r\n", " \n", "\n ", "\u00a0", "\u3000"):
            texts += [space * run, f"a{space * run}b", f"{space * run}.", f".{space * run}1"]
        texts += [("1234567890" * 4)[:run], "9" * run, f"x{'7' * run}.5"]
    for text in _DECOMPOSED:
        texts += [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    texts += [*_CHARACTERS, *_blocks()]
    texts += more
    tokens = list(tokens)
    for token in tokens:
        texts += [token, f"a{token}b"]
        apart = [f"a {token} b", f"{token}{token}", f".{token}\n{token}1"]
        texts += apart if len(tokens) <= _MANY else ["".join(apart)]
    return list(dict.fromkeys(texts))
