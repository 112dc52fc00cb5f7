"""Numbers as words: one way to write a rate, an interval, a radius and a rank correlation; never the word "nan"."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "not measured"
NO_SURVIVOR = "no image kept its class"
CONSTANT = "the map is constant"
TOO_FEW = "too few for an interval"
SIGNIFICANT = 0.05  # a corrected p-value below this names a winner
_MAPS = {
    "cam": "class activation map",
    "gradcam": "Grad-CAM map",
    "gradcam_plus_plus": "Grad-CAM++ map",
    "gradient": "input-gradient map",
    "smoothgrad": "SmoothGrad map",
    "integrated_gradients": "integrated-gradients map",
    "representation": "representation map",
}
SHORT = 16  # characters of a short name: what fits beside a curve
_SPACE = "\u00a0"  # no line break between a figure and its unit

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


_WORDNET = re.compile(r"^n\d{8} +(?=\S)")
_LEVELS = {
    "saturation": "p = {}",
    "patch shuffling": "{0} × {0} patches",
    "low frequencies": "up to {} cycles per image",
    "high frequencies": "beyond {} cycles per image",
    "random frequencies": "{} of them dropped",
}


def number(value: Any) -> float | None:
    """`value` as a finite float, or None where it is missing, NaN or infinite."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: Any) -> str:
    """0.775 -> "77.5 %"."""
    finite = number(value)
    return ABSENT if finite is None else f"{100 * finite:.1f}{_SPACE}%"


def points(value: Any) -> str:
    """A difference of two rates in percentage points, signed: 0.7 -> "+70.0"."""
    finite = number(value)
    return ABSENT if finite is None else f"{100 * finite:+.1f}".replace("-", "−")


def decimal(value: Any, *, digits: int = 2) -> str:
    """A number with a fixed count of decimals and a true minus sign."""
    finite = number(value)
    return ABSENT if finite is None else f"{finite:.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference with its sign, a true one: -0.04 -> "−0.04"."""
    return f"{value:+.2f}".replace("-", "−")


def significant(value: Any) -> str:
    """A number of unknown magnitude with three significant digits."""
    finite = number(value)
    if finite is None:
        return ABSENT
    digits, _, exponent = f"{finite:.3g}".partition("e")
    power = f" × 10{str(int(exponent)).translate(_SUPERSCRIPT)}" if exponent else ""
    return digits.replace("-", "−") + power


def class_name(name: str) -> str:
    """A class as people call it: without its WordNet id, "n01641577 bullfrog", where a word is left."""
    return _WORDNET.sub("", name)


def level(entry: Mapping[str, Any]) -> str:
    """How strongly a transform was applied, "4 × 4 patches"."""
    return _LEVELS.get(entry["transform"], "{}").format(entry["level"])


def radius(eps: float) -> str:
    """A radius as people write it: 0.3 stays 0.3, 0.0313725 becomes 8/255."""
    levels = eps * 255
    if abs(eps - round(eps, 2)) > 1e-9 and abs(levels - round(levels)) < 1e-4:
        return f"{round(levels)}/255"
    return f"{eps:.4g}"


def axis(ball: str) -> str:
    """What a radius measures in this kind of ball, for the x axis of a curve."""
    return "largest change of a pixel, ε" if ball == "Linf" else f"size of the change, ε ({ball})"


def allowed(ball: str, eps: float) -> str:
    """What an attack of this radius may do, in a subordinate clause."""
    if ball == "Linf":
        return f"allowed to change every pixel by up to {radius(eps)} of the way from black to white"
    return f"allowed a change of size {radius(eps)} ({ball})"


def rate_interval(rate: Mapping[str, Any]) -> str:
    """The interval of a rate in per cent, "[71.0–83.0]", or nothing where it is unknown."""
    low, high = number(rate.get("low")), number(rate.get("high"))
    return "" if low is None or high is None else f"[{100 * low:.1f}–{100 * high:.1f}]"


def rate(value: Mapping[str, Any] | None) -> str:
    """A rate with its interval: "77.5 % [71.0–83.0]"."""
    return ABSENT if value is None else f"{percent(value.get('value'))} {rate_interval(value)}".strip()


def tau_interval(entry: Mapping[str, Any]) -> str:
    """The interval of a rank correlation, "[0.88, 0.93]" (a comma: a dash would read as a minus), or why not."""
    low, high = number(entry.get("low")), number(entry.get("high"))
    return f"({TOO_FEW})" if low is None or high is None else f"[{decimal(low)}, {decimal(high)}]"


def averaged(entry: Mapping[str, Any]) -> int:
    """How many rank correlations a mean one is the mean of: images that kept their class and have a map to compare."""
    return int(entry["n_tau"] if "n_tau" in entry else entry["survivors"])


def tau_missing(entry: Mapping[str, Any]) -> str:
    """Why there is no rank correlation: no image is left, or images are, and their maps are constant."""
    return CONSTANT if entry["survivors"] else NO_SURVIVOR


def tau(entry: Mapping[str, Any] | None) -> str:
    """A rank correlation with its interval and how many it averages, or the reason why there is none."""
    if entry is None:
        return ABSENT
    if number(entry.get("tau")) is None:
        return tau_missing(entry)
    return f"{decimal(entry['tau'])} {tau_interval(entry)}, n = {count(averaged(entry))}"


def tau_detail(entry: Mapping[str, Any]) -> str:
    """How many maps a mean rank correlation averages, and how many images kept their class."""
    kept = f"{count(entry['survivors'])} of {count(entry['n'])} kept their class"
    return f"n = {count(averaged(entry))}; {kept}" if averaged(entry) else kept


def p_value(value: Any) -> str:
    """A p-value: "p = 0.62", "p = 0.0143" where the threshold is near, "p < 0.001" for any smaller."""
    finite = number(value)
    if finite is None:
        return f"p {ABSENT}"
    return "p < 0.001" if finite < 0.001 else f"p = {finite:.{2 if finite >= 0.1 else 4}f}"


def map_name(interpreter: str | None) -> str:
    """The maps of an interpreter as people call them, in the singular; `interpreter` is its specification."""
    name = (interpreter or "cam").partition("(")[0]
    return _MAPS.get(name, f"{name} map")


def count(value: int) -> str:
    """An integer with thin spaces between thousands: 1 663 370."""
    return f"{value:,}".replace(",", "\u202f")


def plural(value: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{count(value)}{_SPACE}{noun}{'' if value == 1 else 's'}"


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, the middle replaced by an ellipsis: both ends of a file name tell."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 3
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def telling(names: Sequence[str], limit: int) -> list[str]:
    """Each name in at most `limit` characters, no two alike: of long ones the part in which they differ.

    What all of them begin with, or end in, gives way to an ellipsis, whole words of it.
    """
    if all(len(name) <= limit for name in names) or len(set(names)) < 2:
        return [shorten(name, limit) for name in names]
    first, last = (_common([name[::way] for name in names]) for way in (1, -1))
    middles = [name[first : len(name) - last] for name in names]
    if all(middles):  # not so where one name is the start of another
        names = ["…" * (first > 0) + middle + "…" * (last > 0) for middle in middles]
    found = [shorten(name, limit) for name in names]
    if len(set(found)) == len(set(names)):
        return found
    return [f"{shorten(name, limit - len(str(i)) - 1)} {i}" for i, name in enumerate(names, 1)]


def short_names(names: Sequence[str]) -> list[str]:
    """`telling` where the full names stand beside: what all have in common gives way without a trace.

    The ellipses stay where what is left would say too little: a number, or no longer a name of its own.
    """
    found = telling(names, SHORT)
    bare = [name.strip("…") for name in found]
    says = all(len(name) > 1 and any(letter.isalpha() for letter in name) and "…" not in name for name in bare)
    return bare if says and len(set(bare)) == len(bare) else found


def _common(names: Sequence[str]) -> int:
    """How many characters all names begin with, up to the end of a word."""
    length = 0
    for i, letters in enumerate(zip(*names, strict=False), 1):
        if len(set(letters)) > 1:
            break
        length = length if letters[0].isalnum() else i
    return length


def at_radius(entries: list[dict[str, Any]] | None, eps: float | None) -> dict[str, Any] | None:
    """The entry measured at radius `eps`, None where there is none."""
    if eps is None:
        return None
    return next((entry for entry in entries or [] if math.isclose(entry["eps"], eps, rel_tol=1e-6)), None)


def radii(audit: Mapping[str, Any], field: str = "robust") -> list[float]:
    """Every radius at which some model has an entry in `field` ("robust" or "aai"), ascending."""
    return sorted({float(entry["eps"]) for model in audit["models"] for entry in model.get(field) or []})


def failures(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The masking checks that `model` fails."""
    return [check for check in model.get("checks") or [] if check["verdict"] == "fail"]
