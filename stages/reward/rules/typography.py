"""An answer without its typesetting."""

import functools
import re
import unicodedata

_WORDS = r"[A-Za-zÀ-ɏΩ°%\u4e00-\u9fff~ .,;:'()&/-]*"
_FONTS = r"text|textbf|textrm|textit|textnormal|textsf|texttt|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|mbox|emph"
_DOUBLED = "[dt]?frac|left|right|leq?|geq?|sqrt|pi|text|mathrm|cdot|times|infty|angle|circ|pm|begin|end"
"""Commands whose backslash data sets escape twice; two backslashes before a letter are otherwise a new row."""
_FONT = re.compile(rf"\\(?:{_FONTS})\s*\{{([^{{}}]*)\}}")

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\s+", " "),
        (rf"(?<!\\)\\\\(?=(?:{_DOUBLED})(?![a-zA-Z]))", r"\\"),
        (rf"\\(?:{_FONTS})\s*\{{({_WORDS})\}}", r" \1 "),
        (rf"\{{\s*\\(?:rm|bf|it|sf|tt)(?![a-zA-Z])\s*({_WORDS})\}}", r" \1 "),
        (r"\\(?:rm|bf|it|sf|tt)(?![a-zA-Z])|\\[hv]space\*?\s*\{[^{}]*\}", " "),
        (r"\\(?:[dtc]|nice)frac(?![a-zA-Z])", r"\\frac"),
        (r"(?<!\\)\{\s*\{?([^{}\\]+)\}?\s*\\over(?![a-zA-Z])\s*\{?([^{}\\]+)\}?\s*\}", r"\\frac{\1}{\2}"),
        (r"(?<=\\\\)\s*\[[0-9.]+ ?(?:mm|cm|pt|em|ex)\]", ""),
        (r"\\(?:left|right|displaystyle|limits|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
        (r"\\(?:begin|end)\{(?:equation|displaymath|gather)\*?\}", " "),
        (r"\\begin\{array\}\s*\{[lcr|\s]*\}", r"\\begin{array}"),
        (r"[\[(]\s*\\begin\{array\}(.*?)\\end\{array\}\s*[\])]", r"\\begin{pmatrix}\1\\end{pmatrix}"),
        (r"\\(begin|end)\{(?:array|smallmatrix)\}", r"\\\1{pmatrix}"),
        (r"(?<=[0-9])(?:\\,|(?:\s*\{, ?\}|,\s*\\!)\s*)(?=[0-9]{3})", ","),
        (r"(?<!\\)\\!", ""),
        (r"(?<=[A-Z])\s*~\s*(?=[△∆]|\\(?:big)?triangle)", r"\\sim "),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\\(?:thin|med|thick)?space(?![a-zA-Z])", " "),
        (r"(?<!\\)\${1,2}((?:\\.|[^$\\])+)\${1,2}", r" \1 "),
        (r"(?<!\\)\\[(\[](.+?)(?<!\\)\\[)\]]", r" \1 "),
        (r"(?<![\w)\]}])\*\*|\*\*(?![\w(\[{\\])", ""),
        (r"[−–]|(?<=[0-9]) ?— ?(?=[0-9])", "-"),
        (r"(?<=[0-9])(?: ?\^ ?\{ ?\\prime ?\\prime ?\}|″|''|′′|’’)", '"'),
        (r"(?<=[0-9])(?: ?\^ ?(?:\{ ?\\prime ?\}|\\prime)|’)|′", "'"),
        (r"″", "''"),
        (r"≤|<=|⩽|\\leq(?:slant)?(?![a-zA-Z])", r"\\le "),
        (r"≥|>=|⩾|\\geq(?:slant)?(?![a-zA-Z])", r"\\ge "),
        (r"≠|!=|\\neq?(?![a-zA-Z])|\\not ?=", r"\\neq "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"≈|≃|\\(?:(?:thick)?approx|simeq|doteq)(?![a-zA-Z])", r"\\approx "),
        (r"\\colon(?![a-zA-Z])|∶", ":"),
        (r"→|\\(?:long)?rightarrow(?![a-zA-Z])", r"\\to "),
        (r"¬|\\lnot(?![a-zA-Z])", r"\\neg "),
        (r"∧|\\wedge(?![a-zA-Z])", r"\\land "),
        (r"∨|\\vee(?![a-zA-Z])", r"\\lor "),
        (r"\\pmod ?([0-9a-z])(?![0-9a-z])", r"\\pmod{\1}"),
        (r"\\log ?_ ?([0-9]) (?=[0-9])", r"\\log_{\1}"),
        (r"\\[lr]vert(?![a-zA-Z])|\\mid(?![a-zA-Z])|∣", "|"),
        (r"\\(?:dots|ldots|cdots)(?![a-zA-Z])|…", "..."),
        (r"π|(?<=[0-9]) ?pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<=[0-9}]) i(?![a-zA-Z])", "i"),
        (r"∞", r"\\infty "),
        (r"∈", r"\\in "),
        (r"∪|\\bigcup(?![a-zA-Z])", r"\\cup "),
        (r"∩|\\bigcap(?![a-zA-Z])", r"\\cap "),
        (r"∠|\\measuredangle(?![a-zA-Z])", r"\\angle "),
        (r"[△∆]|\\bigtriangleup(?![a-zA-Z])|\\Delta(?= ?[A-Z]{3}(?![A-Za-z]))", r"\\triangle "),
        (r"□|\\Box(?![a-zA-Z])|▱|\\parallelogram(?![a-zA-Z])", r"\\square "),
        (r"∥|(?<=[A-Z])\s*\|\|\s*(?=[A-Z])", r"\\parallel "),
        (r"⊥", r"\\perp "),
        (r"≅", r"\\cong "),
        (r"∼|∽", r"\\sim "),
        (r"⊙", r"\\odot "),
        (r"∅|\\varnothing(?![a-zA-Z])", r"\\emptyset "),
        (r"√\{", r"\\sqrt{"),
        (r"(?<![\\a-zA-Z])sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\(?(\w+)\)?", r"\\sqrt{\1}"),
        (r"^ ?[Aa]ll real(?:s| numbers) ?$", r"\\mathbb{R}"),
        (r"\s+", " "),
        (r"^ ?([0-9]{1,2}(?::[0-9]{2})?) ?[aA]\.? ?[mM][. ]*$", r"\1 am"),
        (r"^ ?([0-9]{1,2}(?::[0-9]{2})?) ?[pP]\.? ?[mM][. ]*$", r"\1 pm"),
        (r"(?:(?<![\w.,:/-])|^(-)) ?([0-9]+) ([0-9]+)/([0-9]+)(?![\w.,:/-])", r"\1\2\\frac{\3}{\4}"),
    ]
]
_GREEK = "alpha beta gamma delta varepsilon theta lambda rho sigma tau varphi omega"
_SPACED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9])")
_TYPESET = str.maketrans(
    {chr(wide): chr(wide - 0xFEE0) for wide in range(0xFF01, 0xFF5F)}
    | {"。": ".", "、": ",", "⁄": "/", "µ": "μ", "℃": "°C", "℉": "°F"}
    | {letter: f"\\{name} " for letter, name in zip("αβγδεθλρστφω", _GREEK.split(), strict=True)}
    | dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", "")
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "«": "»"}
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
ARTICLE = re.compile(r"(?:the|an?) +(?=[^\W\d_]\S)", re.IGNORECASE)
"""Before a word, where it says nothing; ``a + b`` begins with a letter."""


@functools.lru_cache(maxsize=4096)
def clean(answer: str) -> str:
    """The answer without typography: math delimiters, emphasis, fonts, spacing commands, quotes, final punctuation.

    Decimal digits of any script (Arabic-Indic) and fullwidth forms become ASCII; superscripts become powers, never
    digits; spaces between thousands and characters without width go; ``1 1/2`` is ``1\\frac{1}{2}``; signs (``≤``,
    ``∠``, ``≈``) become the commands of LaTeX.
    """
    if not answer.isascii():
        answer = _in_ascii(answer)
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = _SPACED.sub(lambda thousands: thousands[0].replace(" ", ""), answer)
    while True:
        bare = unwrapped(re.sub(r"(?<![.\\])[.,;:]$", "", answer.strip(" *`")))
        if bare == answer:
            return bare
        answer = bare


def _in_ascii(answer: str) -> str:
    """Digits, powers and forms that ASCII or LaTeX has too, written so."""
    answer = unicodedata.normalize("NFC", answer).translate(_TYPESET)
    answer = re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), answer)
    return re.sub("[⁰¹²³⁴-⁹⁻]+", lambda power: _power(power[0].translate(_SUPERSCRIPTS)), answer)


def _power(exponent: str) -> str:
    return f"^{exponent}" if len(exponent) == 1 else f"^{{{exponent}}}"


def unwrapped(answer: str) -> str:
    """Without the font, braces or quotes around the whole of it."""
    if whole := _FONT.fullmatch(answer):
        return whole[1]
    inside = answer[1:-1]
    if answer[:1] == "{" and answer[-1:] == "}" and is_balanced(inside):
        return inside
    closing = _QUOTES.get(answer[:1])
    if closing and len(answer) > 1 and answer[-1] == closing and not {answer[0], closing} & set(inside):
        return inside
    return answer


def is_balanced(text: str) -> bool:
    """Whether every brace of the text closes in it; escaped ones are none."""
    depth = 0
    for brace in _BRACES.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth < 0:
            return False
    return depth == 0


DEGREE = re.compile(r" ?\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])")
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])")
_ONE_BRACED = re.compile(r"\{([0-9A-Za-z])\}")
_PREFIXES = re.compile(r"\\(?=(?:sin|cos|tan|cot|sec|csc|log|ln|exp|min|max|gcd|lcm)(?![a-zA-Z]))")
_ARGUMENT = re.compile(r"(?<=sin|cos|tan|cot|sec|csc|log) ?\(?([A-Za-z])\)?(?![A-Za-z(])")


def normalised(text: str) -> str:
    """A cleaned answer as it is compared by text: without spaces and braces that say nothing.

    ``\\sin{A}``, ``\\sin (A)`` and ``sin A`` are the same; so are ``\\{x: x>2\\}`` and ``\\{ x | x > 2 \\}``.
    """
    text = _ONE_BRACED.sub(r"\1", _PREFIXES.sub("", DEGREE.sub("°", text)))
    text = _ARGUMENT.sub(r" \1", _IDLE_SPACE.sub("", text))
    return re.sub(r"(?<=^\\\{[A-Za-z]):", "|", text)
