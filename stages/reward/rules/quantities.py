"""Plain numbers and their units."""

import re
from fractions import Fraction
from typing import NamedTuple

from stages.reward.rules.typography import unwrapped

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)"
_EXPONENT = r"[+-]?[0-9]{1,3}"
_FRACTION = (
    rf"\\frac\s*(?:\{{\s*(?P<top>[+-]?{_INTEGER})\s*\}}|(?P<digit>[0-9]))"
    rf"\s*(?:\{{\s*(?P<bottom>[+-]?{_INTEGER})\s*\}}|(?P<under>[0-9]))"
)
_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)\s*(?:
        (?P<decimal>{_DECIMAL})
        (?: [eE](?P<e>{_EXPONENT})
          | \s*(?:\\times|\\cdot|×|\*|[ ]x[ ]?)\s*(?:10|\{{10\}})\s*\^
            \s*(?P<brace>\{{)?(?P<ten>{_EXPONENT})(?(brace)\}}) )?
      | (?P<before>[0-9]*\.[0-9]*) (?:\\overline|\\bar|\\dot)\s*\{{(?P<repeated>[0-9]+)\}}
      | (?:(?P<whole>[0-9]+)\s*)? {_FRACTION}
      | (?P<over>{_INTEGER})\s*/\s*(?P<below>[+-]?{_INTEGER})
      | (?:10|\{{10\}})\^\s*(?P<bare>\{{)?(?P<power>{_EXPONENT})(?(bare)\}})
    )""",
    re.VERBOSE,
)


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, or None.

    Plain: an integer, decimal (``0.\\overline{3}`` too), simple fraction (``a/b``, ``\\frac{a}{b}``) or mixed number
    (``1\\frac{1}{2}``, whose fraction is below one), signed, with thousands commas or in scientific notation, a power
    of ten alone included. ``1+1``, ``2^3``, ``3!``, ``1/0`` and a list are not.
    """
    match = _NUMBER.fullmatch(text)
    if not match:
        return None
    part = {name: value.replace(",", "") for name, value in match.groupdict().items() if value}
    sign = -1 if part.get("sign") == "-" else 1
    if "decimal" in part:
        return sign * Fraction(part["decimal"]) * Fraction(10) ** int(part.get("e") or part.get("ten") or 0)
    if "power" in part:
        return sign * Fraction(10) ** int(part["power"])
    if "repeated" in part:
        return sign * _repeating(part["before"], part["repeated"])
    top = int(part.get("top") or part.get("digit") or part["over"])
    bottom = int(part.get("bottom") or part.get("under") or part["below"])
    if bottom == 0 or ("whole" in part and not 0 <= top < bottom):
        return None
    return sign * (int(part.get("whole", 0)) + Fraction(top, bottom))


def _repeating(before: str, repeated: str) -> Fraction:
    """0.1 with 6 repeated is 1/6."""
    whole, _, places = before.partition(".")
    return (int(whole or "0") + Fraction(int(places or "0"), 10 ** len(places))) + Fraction(
        int(repeated), (10 ** len(repeated) - 1) * 10 ** len(places)
    )


_UNITS = {
    name: line.split()[0]
    for line in """
        nm nanometer nanometers nanometre nanometres 纳米
        μm um micrometer micrometers micrometre micrometres micron microns 微米
        mm millimeter millimeters millimetre millimetres 毫米
        cm centimeter centimeters centimetre centimetres 厘米
        dm decimeter decimeters decimetre decimetres 分米
        m meter meters metre metres 米
        km kilometer kilometers kilometre kilometres 千米 公里
        Å angstrom angstroms
        in inch inches
        ft foot feet
        yd yard yards
        mi mile miles
        ly
        acre acres
        ha hectare hectares 公顷
        mg milligram milligrams 毫克
        g gram grams 克
        kg kilogram kilograms 千克 公斤
        t ton tons tonne tonnes 吨
        oz ounce ounces
        lb lbs pound pounds
        ml mL milliliter milliliters millilitre millilitres 毫升
        l L liter liters litre litres 升
        gal gallon gallons
        floz
        qt quart quarts
        pt pint pints
        cup cups
        tbsp tablespoon tablespoons
        tsp teaspoon teaspoons
        ns nanosecond nanoseconds
        ms millisecond milliseconds 毫秒
        s sec second seconds 秒
        min minute minutes 分钟
        h hr hrs hour hours 小时
        day days 天
        week weeks 周
        month months 月
        yr year years 年
        Hz hertz
        kHz kilohertz
        MHz megahertz
        GHz gigahertz
        N newton newtons
        kN kilonewton kilonewtons
        J joule joules
        kJ kilojoule kilojoules
        MJ megajoule megajoules
        cal calorie calories
        kcal kilocalorie kilocalories
        eV
        kWh
        W watt watts
        kW kilowatt kilowatts
        MW megawatt megawatts
        V volt volts
        mV millivolt millivolts
        kV kilovolt kilovolts
        A ampere amperes amp amps
        mA milliampere milliamperes
        C coulomb coulombs
        F farad farads
        T tesla teslas
        Wb weber webers
        H henry henries
        Ω ohm ohms
        kΩ kiloohm kiloohms kilohm kilohms
        MΩ megaohm megaohms
        μF microfarad microfarads
        lm lumen lumens
        lx lux
        cd candela candelas
        Bq becquerel becquerels
        Gy gray grays
        Sv sievert sieverts
        AU
        dB decibel decibels
        mol mole moles
        mmol millimole millimoles
        K kelvin
        Pa pascal pascals
        hPa hectopascal hectopascals
        kPa kilopascal kilopascals
        MPa megapascal megapascals
        GPa gigapascal gigapascals
        bar bars
        psi
        mmHg
        atm atmosphere atmospheres
        rad radian radians
        rpm
        ° degree degrees deg 度
        °C celsius 摄氏度
        °F fahrenheit
        % percent pct percentage
        $ dollar dollars USD 美元
        ¢ cent cents
        € euro euros EUR
        £ GBP
        ¥ yen
        yuan RMB CNY 元
        unit units
        mi/h mph
        mi/gal mpg
        km/h kmh kph
        knot knots
        bit bits
        byte bytes
        KB kB kilobyte kilobytes
        MB megabyte megabytes
        GB gigabyte gigabytes
        TB terabyte terabytes
        decade decades
        century centuries
        px pixel pixels
    """.strip().splitlines()
    for name in line.split()
}
_LETTERS = r"a-zA-ZÅΩμ\u4e00-\u9fff"
_UNIT_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:text|mathrm|mbox|operatorname)\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", r" \1"),
        (r"(?<=[0-9}]) ?\( ?([a-zA-Z°%/^0-9]+) ?\)$", r" \1"),
        (r"(?<=[0-9]) ?\{ ?([a-zA-Z]+) ?\}$", r" \1"),
        (r"\\Omega(?![a-zA-Z])", "Ω"),
        (r"\\mu(?![a-zA-Z]) ?(?=[a-zA-Z])", "μ"),
        (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])|\\circ(?![a-zA-Z])", " °"),
        (r"(?<=[0-9])\^ ?\{? ?o ?\}?$", " °"),
        (r" ?\* ?(?=°|[a-zA-Z]{1,2}$)", " "),
        (r" \^", "^"),
        (r"°\s*([CF])$", r" °\1"),
        (r"\\([%$])", r"\1"),
        (r"^US(?=\$)", ""),
        (r"^([+-]?) ?([$€£¥]) ?(.+)$", r"\1\3 \2"),
        (r"degrees? (?:[Cc]elsius|C)$", "°C"),
        (r"degrees? (?:[Ff]ahrenheit|F)$", "°F"),
        (r"(?<=[0-9}])(?=[%°¢$€£¥Ωμ\u4e00-\u9fff])|(?<=[0-9])(?=[a-zA-Z]+[/Ω]|[a-zA-Z]{2,}(?:\^|$)|m\^)", " "),
        (r"(?<=\})(?=(?:[munkcd]?m|ft|in|kg)(?:\^|$))", " "),
        (r"\\frac ?\{ ?([a-zA-Z^0-9]+) ?\} ?\{ ?([a-zA-Z^0-9]+) ?\}$", r" \1/\2"),
        (r" ?\bper ", "/"),
        (r"\b(?:fl\.? ?oz|fluid ounces?)$", " floz"),
        (r"/ ?\( ?([a-zA-Z]+) ?(?:\\cdot|[·*]| ) ?([a-zA-Z]+) ?\)$", r"/\1/\2"),
        (r"(?: |^)(?:square|sq\.?) ([a-zA-Z]+)", r" \1^2"),
        (r"(?: |^)(?:cubic|cu\.?) ([a-zA-Z]+)", r" \1^3"),
        (r"(?<![a-zA-Z])([a-zA-Z]+) squared$", r" \1^2"),
        (r"(?<![a-zA-Z])([a-zA-Z]+) cubed$", r" \1^3"),
        (r"平方([\u4e00-\u9fff]+)$", r" \1^2"),
        (r"立方([\u4e00-\u9fff]+)$", r" \1^3"),
        (r"(?<![a-zA-Z])([a-zA-Z]{1,5}) ?(?:\\cdot)? ?([a-zA-Z]{1,5})\^\{-([12])\}$", r" \1/\2^\3"),
        (r"/([a-zA-Z]+)\^1$", r"/\1"),
        (r"(?<=[a-zA-Z]) ?(?:\\cdot|·) ?(?=[a-zA-Z])", "·"),
        (r"^\(([0-9]+)\)(?= ?_)", r"\1"),
        (r"(?: |(?<=[0-9]))_ ?\{? ?\(?(?:base ?)?([0-9]{1,2})\)? ?\}?$| base ([0-9]{1,2})$", r" base\1\2"),
        (r" +", " "),
    ]
]
_NO_QUANTITY = re.compile(r"(?:[-+*/=^_(\[,<>|]|\\(?!pi$|infty$)[a-zA-Z]+)$")
"""The end of a formula that goes on: what stands behind is no unit but a variable, as in ``\\angle A`` or ``x + m``."""
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASE_WORD = re.compile(rf"(?:(?<=_\{{)|(?<=base )|(?<=_\{{ )) ?(?:base )?({'|'.join(_BASES)}) ?(?=\}}|$)")
_UNIT_FACTOR = re.compile(rf"([{_LETTERS}]+|[°%$¢€£¥][CF]?)(?:\^(?:([23])|\{{([23])\}}))?")
_BASE = re.compile(r"base([0-9]{1,2})")


def unit(text: str) -> str | None:
    """The canonical name of a unit (``square centimeters`` and ``cm^{2}`` are ``cm^2``), None for anything else.

    A number's base is a unit: ``base5``.
    """
    if _BASE.fullmatch(text):
        return text
    products = [sorted(filter(None, map(_factor, product.split("·")))) for product in text.split("/")]
    stated_factors = [len(product.split("·")) for product in text.split("/")]
    if [len(product) for product in products] != stated_factors:
        return None
    above, *below = ("·".join(product) for product in products)
    return "/".join([above, *sorted(below)])


def _factor(text: str) -> str | None:
    match = _UNIT_FACTOR.fullmatch(text.strip())
    name = match and (_UNITS.get(match[1]) or (_UNITS.get(match[1].lower()) if len(match[1]) > 3 else None))
    if not match or not name:
        return None
    power = match[2] or match[3]
    return f"{name}^{power}" if power else name


class Quantity(NamedTuple):
    """``5 cm`` is body ``5`` and unit ``cm``; the unit may be empty."""

    body: str
    unit: str


def quantity(text: str) -> Quantity:
    """Take the unit off a cleaned answer; only a listed one counts, so ``5 million`` keeps its million.

    Degrees and minutes are degrees: ``30° 15'`` is ``\\frac{121}{4}``.
    """
    if angle := _SEXAGESIMAL.fullmatch(text):
        return Quantity(_in_degrees(angle), "°")
    spaced = _BASE_WORD.sub(lambda base: str(_BASES[base[1]]), text)
    for pattern, replacement in _UNIT_REWRITES:
        spaced = pattern.sub(replacement, spaced)
    words = spaced.strip().split(" ")
    for count in range(min(3, len(words) - 1), 0, -1):
        body = " ".join(words[:-count])
        if (found := unit(" ".join(words[-count:]))) is not None and not _NO_QUANTITY.search(body):
            return Quantity(unwrapped(body), found)
    return Quantity(text, "")


_DEGREE = r"(?:°|\^ ?(?:\\circ|\{ ?\\circ ?\})|\\degree)"
_SEXAGESIMAL = re.compile(
    rf"(?P<sign>-?) ?(?P<whole>[0-9]+) ?{_DEGREE} ?(?P<minutes>[0-9]+(?:\.[0-9]+)?) ?'"
    r"(?: ?(?P<seconds>[0-9]+(?:\.[0-9]+)?) ?\\?\")?"
)


def _in_degrees(angle: re.Match[str]) -> str:
    """Degrees, minutes and seconds of an angle as a fraction of degrees."""
    whole, minutes, seconds = (Fraction(angle[part] or 0) for part in ("whole", "minutes", "seconds"))
    degrees = whole + minutes / 60 + seconds / 3600
    return f"{angle['sign']}\\frac{{{degrees.numerator}}}{{{degrees.denominator}}}"


def units_agree(one: str, other: str) -> bool:
    """A unit on one side alone does not contradict; percent is part of the value."""
    if "%" in (one, other):
        return one == other
    return not one or not other or one == other
