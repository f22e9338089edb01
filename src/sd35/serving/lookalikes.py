"""Letters that look like a to z, by hand: other scripts' letters, which no normal form brings together.

Unicode calls them confusables (UTS #39, "Unicode Security Mechanisms"). What Unicode's own normal forms or a
character's name give away (full width, mathematical, small capitals, letters with strokes and hooks) is not
listed: `normalise.py` finds that by rule.
"""

LOOKALIKES: dict[str, str] = {
    # Cyrillic, then Greek (capitals that look unlike their small letters first), Coptic.
    "а": "a", "в": "b", "ь": "b", "с": "c", "ԁ": "d", "ҽ": "e", "е": "e", "є": "e", "ғ": "f", "ԍ": "g",
    "һ": "h", "н": "h", "ђ": "h", "ћ": "h", "і": "i", "ј": "j", "к": "k", "қ": "k", "ҟ": "k", "ӏ": "l",
    "м": "m", "п": "n", "о": "o", "ө": "o", "р": "p", "ԛ": "q", "г": "r", "ѕ": "s", "т": "t", "ц": "u",
    "ѵ": "v", "ԝ": "w", "ѡ": "w", "ш": "w", "х": "x", "у": "y", "ү": "y", "ұ": "y",
    "Η": "h", "Μ": "m", "Ν": "n", "Υ": "y",
    "α": "a", "β": "b", "ϲ": "c", "ε": "e", "ϝ": "f", "ι": "i", "ϳ": "j", "κ": "k", "η": "n", "ο": "o",
    "σ": "o", "ρ": "p", "ς": "c", "τ": "t", "υ": "u", "μ": "u", "ν": "v", "ω": "w", "χ": "x", "γ": "y",
    "ζ": "z", "δ": "d", "π": "n",
    "ⲁ": "a", "ⲃ": "b", "ⲥ": "c", "ⲉ": "e", "ⲏ": "h", "ⲓ": "i", "ⲕ": "k", "ⲙ": "m", "ⲛ": "n", "ⲟ": "o",
    "ⲣ": "p", "ⲧ": "t", "ⲩ": "y", "ⲭ": "x", "ⲱ": "w",
    # Armenian.
    "ա": "w", "օ": "o", "ո": "n", "ս": "u", "հ": "h", "ց": "g", "զ": "q", "յ": "j", "լ": "l", "ղ": "n",
    "ռ": "n", "տ": "s", "ի": "h", "Տ": "s", "ք": "f", "ւ": "i",
    # Cherokee; its small letters fold to these.
    "Ꭺ": "a", "Ᏼ": "b", "Ꮟ": "b", "Ꮯ": "c", "Ꭰ": "d", "Ꮷ": "d", "Ꭼ": "e", "Ꮐ": "g", "Ᏻ": "g", "Ꮋ": "h",
    "Ꮒ": "h", "Ꭵ": "i", "Ꭻ": "j", "Ꮶ": "k", "Ꮮ": "l", "Ꮇ": "m", "Ꮲ": "p", "Ꭱ": "r", "Ꮢ": "r", "Ꮪ": "s",
    "Ꮥ": "s", "Ꭲ": "t", "Ꮩ": "v", "Ꮙ": "v", "Ꮃ": "w", "Ꮤ": "w", "Ꮍ": "y", "Ꭹ": "y", "Ꮓ": "z",
    # Lisu.
    "ꓮ": "a", "ꓐ": "b", "ꓚ": "c", "ꓓ": "d", "ꓰ": "e", "ꓝ": "f", "ꓖ": "g", "ꓧ": "h", "ꓲ": "i", "ꓙ": "j",
    "ꓗ": "k", "ꓡ": "l", "ꓟ": "m", "ꓠ": "n", "ꓳ": "o", "ꓑ": "p", "ꓣ": "r", "ꓢ": "s", "ꓔ": "t", "ꓴ": "u",
    "ꓦ": "v", "ꓪ": "w", "ꓫ": "x", "ꓬ": "y", "ꓜ": "z",
    # Canadian syllabics, runes, Tifinagh, Georgian.
    "ᗅ": "a", "ᗷ": "b", "ᑲ": "b", "ᖯ": "b", "ᗞ": "d", "ᗪ": "d", "ᑯ": "d", "ᖴ": "f", "ᕼ": "h", "ᒍ": "j",
    "ᒪ": "l", "ᗰ": "m", "ᑭ": "p", "ᖇ": "r", "ᑌ": "u", "ᐯ": "v", "ᕁ": "x", "ᕽ": "x", "ᛕ": "k", "ᛖ": "m",
    "ᚷ": "x", "ᛁ": "l", "ⵏ": "l", "ⴹ": "e", "ⵔ": "o", "ⵕ": "q", "ⴸ": "v", "ⵝ": "x", "ყ": "y", "ჿ": "o",
    # Latin's own odd ones, and signs that stand for letters.
    "ɑ": "a", "⍺": "a", "ƅ": "b", "ɛ": "e", "℮": "e", "ɩ": "i", "ǀ": "l", "ŋ": "n", "þ": "p", "ƿ": "p",
    "ꝛ": "r", "ƨ": "s", "ƽ": "s", "ʋ": "u", "ʌ": "v", "ɯ": "w", "×": "x", "ʏ": "y", "ʒ": "z", "∅": "o",
    "ſ": "f", "ᴑ": "o", "ꬵ": "f", "ƍ": "g", "ɣ": "y", "ᴦ": "r", "ꙇ": "i", "Ϲ": "c", "ⲅ": "r", "գ": "q",
}  # fmt: skip
