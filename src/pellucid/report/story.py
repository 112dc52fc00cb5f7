"""What the top of the page says: the radius it speaks of, one sentence, and a card per model."""

from collections.abc import Mapping
from typing import Any

from pellucid.report import figures, words

HOLDS = 0.75  # robust accuracy at least this share of clean accuracy
KEPT, SHIFTED = 0.8, 0.5  # rank correlations of the explanation


def headline_radius(audit: Mapping[str, Any]) -> float | None:
    """The radius of the headline: the protocol's, which no outcome can move. None where the protocol has no radius."""
    protocol = audit["protocol"]
    ladder = protocol["eps"]
    return protocol.get("gallery_eps", ladder[len(ladder) // 2] if ladder else None)


def lead(audit: Mapping[str, Any], eps: float | None) -> str:
    """The finding in two or three plain sentences, without a judgement the intervals may not bear."""
    models = audit["models"]
    if not models:
        return "This audit holds no model."
    clean = _range([(model["clean"]["value"], model["name"]) for model in models], words.percent)
    sentences = [f"On untouched images {_who(models)} right {clean} of the time."]
    robust = [(value, model["name"]) for model in models if (value := _value(model, eps)) is not None]
    if eps is not None and robust:
        change = words.allowed(audit["protocol"]["ball"], eps)
        several = all(_worst(model, eps) for model in models)
        who = f"The worst of several attacks, each {change}," if several else f"An attack {change}"
        most = "at most " if any(words.failures(model) for model in models) else ""
        sentences.append(f"{who} leaves {most}{_range(robust, words.percent)}.")
    taus = [(v, m["name"]) for m in models if (v := words.number((_aai(m, eps) or {}).get("tau"))) is not None]
    if taus:
        sentences.append(
            "Aimed at the explanation instead, it leaves an agreement with the original of "
            f"τ {_range(taus, words.decimal)}, where 1 is an explanation that did not move."
        )
    return " ".join(sentences)


def card(model: Mapping[str, Any], tone: int, *, eps: float | None, chance: float) -> dict[str, Any]:
    """The figures, each with its interval and bar, two verdicts, and the warning if a masking check fails."""
    robust, aai = words.at_radius(model.get("robust"), eps), _aai(model, eps)
    failed = words.failures(model)
    return {
        "name": model["name"],
        "tone": tone,
        "about": f"{model['architecture']}, {words.count(model['parameters'])} parameters",
        "trained": model.get("trained"),
        "verdicts": [prediction_verdict(model, robust, chance), explanation_verdict(aai)],
        "metrics": [
            _rate_metric("Right on clean images", model["clean"], tone, chance),
            _attacked_metric(robust, _worst(model, eps), tone, chance),
            _tau_metric(aai, tone),
        ],
        "refused": model.get("aai_refused") if not model.get("aai") else None,
        "failed": [check["name"] for check in failed],
        "undecided": sum(check["verdict"] == "undecided" for check in model.get("checks") or []),
        "unchecked": not model.get("checks"),
    }


def prediction_verdict(model: Mapping[str, Any], robust: Mapping[str, Any] | None, chance: float) -> dict[str, str]:
    """holds | gives way | falls, by the thresholds the page prints; guessing and a failed masking check overrule."""
    value, low = words.number((robust or {}).get("value")), words.number((robust or {}).get("low"))
    if (words.number(model["clean"].get("low")) or 0.0) <= chance:
        return {"kind": "bad", "text": "Prediction: guesses"}
    if words.failures(model):
        return {"kind": "bad", "text": "Prediction: not established"}
    if value is None or low is None:
        return {"kind": "none", "text": "Prediction: not attacked"}
    if low <= chance:
        return {"kind": "bad", "text": "Prediction: falls"}
    if value >= HOLDS * model["clean"]["value"]:
        return {"kind": "good", "text": "Prediction: holds"}
    return {"kind": "middle", "text": "Prediction: gives way"}


def explanation_verdict(aai: Mapping[str, Any] | None) -> dict[str, str]:
    """kept | shifts | rewritten, by the rank correlation that the interpretation attack leaves."""
    if aai is None:
        return {"kind": "none", "text": "Explanation: not measured"}
    tau = words.number(aai.get("tau"))
    if tau is None:
        constant = words.tau_missing(aai) == words.CONSTANT
        return {
            "kind": "none",
            "text": f"Explanation: {words.CONSTANT if constant else 'no image left to judge'}",
        }
    if tau >= KEPT:
        return {"kind": "good", "text": "Explanation: kept"}
    if tau >= SHIFTED:
        return {"kind": "middle", "text": "Explanation: shifts"}
    return {"kind": "bad", "text": "Explanation: rewritten"}


def _rate_metric(label: str, rate: Mapping[str, Any] | None, tone: int, chance: float) -> dict[str, Any]:
    value = words.number((rate or {}).get("value"))
    if rate is None or value is None:
        return {"label": label, "value": words.ABSENT, "interval": "", "detail": "", "meter": ""}
    low, high = (words.number(rate.get(side)) for side in ("low", "high"))
    return {
        "label": label,
        "value": words.percent(value),
        "interval": words.rate_interval(rate),
        "detail": f"{words.count(rate['count'])} of {words.count(rate['n'])}",
        "meter": figures.meter(
            value, value if low is None else low, value if high is None else high, tone=tone, mark=chance
        ),
    }


def _worst(model: Mapping[str, Any], eps: float | None) -> dict[str, Any] | None:
    """What the ensemble broke, where it was run at this radius."""
    return words.at_radius([model["worst"]] if model.get("worst") else [], eps)


def _attacked_metric(
    robust: Mapping[str, Any] | None, worst: Mapping[str, Any] | None, tone: int, chance: float
) -> dict[str, Any]:
    """As any rate; where an ensemble was run, with the attacks that broke most."""
    name = "Right under the worst attack" if worst else "Right under attack"
    label = name + (f", ε {words.radius(robust['eps'])}" if robust else "")
    metric = _rate_metric(label, robust, tone, chance)
    broke = {name: n for name, n in ((worst or {}).get("by_attack") or {}).items() if name not in ("clean", "standing")}
    ranked = sorted(broke.items(), key=lambda entry: -entry[1])[:4]
    by = ", ".join(f"{name} {words.count(n)}" for name, n in ranked)
    return metric | {"detail": metric["detail"] + (f"; broken by {by}" if by else "")}


def _tau_metric(aai: Mapping[str, Any] | None, tone: int) -> dict[str, Any]:
    label = "Explanation kept" + (f", ε {words.radius(aai['eps'])}" if aai else "")
    value = words.number((aai or {}).get("tau"))
    if aai is None or value is None:
        text = words.ABSENT if aai is None else words.tau_missing(aai)
        detail = words.tau_detail(aai) if aai else ""
        return {"label": label, "value": text, "interval": "", "detail": detail, "meter": ""}
    low, high = (words.number(aai.get(side)) for side in ("low", "high"))
    return {
        "label": label,
        "value": f"τ {words.decimal(value)}",
        "interval": words.tau_interval(aai),
        "detail": words.tau_detail(aai),
        "meter": figures.meter(value, value if low is None else low, value if high is None else high, tone=tone),
    }


def _aai(model: Mapping[str, Any], eps: float | None) -> dict[str, Any] | None:
    """The interpretation attack at the page's radius; where it was not run there, at its own largest."""
    entries = model.get("aai") or []
    return words.at_radius(entries, eps) or max(entries, key=lambda entry: entry["eps"], default=None)


def _value(model: Mapping[str, Any], eps: float | None) -> float | None:
    return words.number((words.at_radius(model.get("robust"), eps) or {}).get("value"))


def _who(models: list[dict[str, Any]]) -> str:
    return f"{models[0]['name']} is" if len(models) == 1 else "the models are"


def _range(values: list[tuple[float, str]], write: Any) -> str:
    """ "12 %" for one value, "3 % (a) to 78 % (b)" for several."""
    low, high = min(values), max(values)
    if len(values) == 1 or write(low[0]) == write(high[0]):
        return write(low[0])
    return f"{write(low[0])} ({words.shorten(low[1], 24)}) to {write(high[0])} ({words.shorten(high[1], 24)})"
