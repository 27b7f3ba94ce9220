"""Write `weights/estimate/forms.py`: what one step of a family holds at most, as polynomials in its sizes.

Each family is run on the meta device by `profile` with sizes that are distinct primes (times small powers of two), so that
every allocation factors into the sizes it is made of; running sums of allocations give what is held after each as a
polynomial, and those that another one bounds are left out. Runs of 3 and 4 layers give the share of a layer. Nothing is
written by hand; `tests/weights/estimate/test_estimate_forms.py` compares the result with runs of other sizes::

    python scripts/closed_forms.py
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.weights.estimate.profile import run_profile
from modelyard.weights.estimate.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.weights.estimate.sizes import Profile

TARGET = Path(__file__).parents[1] / "src" / "modelyard" / "weights" / "estimate" / "forms.py"

# Symbol -> its prime: rows, tokens, key-value heads, query heads a key-value head, half a head's width, width of the model
# for each query head (odd part), inner width, vocabulary, LoRA's rank.
PRIMES = {"B": 7, "L": 11, "k": 5, "g": 13, "d": 17, "h": 19, "I": 23, "V": 29, "r": 31}
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
STEPS: dict[str, dict[str, Any]] = {
    "inference": {"mode": "inference", "new_tokens": 0},
    "lora": {"mode": "lora"},
    "lora again": {"mode": "lora", "gradient_checkpointing": True},
    "full": {"mode": "full"},
    "full again": {"mode": "full", "gradient_checkpointing": True},
}
Polynomial = Counter[str]
Form = tuple[Polynomial, Polynomial]
Plain = tuple[dict[str, int], dict[str, int]]


def make_config(model_type: str, layers: int) -> dict[str, Any]:
    """A configuration whose sizes are the primes."""
    heads = PRIMES["k"] * PRIMES["g"]
    return {
        "model_type": model_type,
        "architectures": [FAMILIES[model_type]],
        "hidden_size": heads * 2 * PRIMES["h"],
        "intermediate_size": PRIMES["I"],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": PRIMES["k"],
        "head_dim": 2 * PRIMES["d"],
        "vocab_size": PRIMES["V"],
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def monomial(size: int) -> tuple[str, int] | None:
    """(symbols, coefficient) of a number of bytes that is not 0; None where it is no product of sizes."""
    symbols = ""
    for symbol, prime in PRIMES.items():
        while size % prime == 0:
            size //= prime
            symbols += symbol
    return (symbols, size) if size <= 64 else None


def moments(events: Sequence[tuple[int, int]]) -> list[tuple[tuple[str, bool], Polynomial]]:
    """What is held after each event, and what the event was."""
    held: Polynomial = Counter()
    found = []
    for _, size in events:
        term = monomial(abs(size)) if size else None
        if (
            term is not None
        ):  # else a sum, such as a row's length and one: some bytes a token, which the test allows for
            held[term[0]] += term[1] if size > 0 else -term[1]
        found.append(((term[0] if term else "", size > 0), Counter({key: n for key, n in held.items() if n})))
    return found


def segments(profile: Profile) -> list[list[tuple[tuple[str, bool], Polynomial]]]:
    """Moments of the forward pass, the backward pass and the optimizer's step."""
    found = moments(profile.events)
    borders = [0, *profile.marks, len(found)]
    return [found[start:end] for start, end in itertools.pairwise(borders)]


def derive(model_type: str, step: str, dtype: str) -> list[Plain]:
    """(what is held with no layer, what each layer adds) for every moment that may be the peak.

    What is held changes by the same amount from each layer to the next, so the most of a pass is in its first layer or in
    its last: moments are counted from either end of it, where runs of 3 and 4 layers do the same.
    """
    workload = Workload(batch=PRIMES["B"], length=PRIMES["L"], rank=PRIMES["r"], **STEPS[step])
    three, four = (segments(run_profile(make_config(model_type, n), workload, dtype)) for n in (3, 4))
    made: list[Form] = []
    for few, more in zip(three, four, strict=True):
        third = len(few) // 3 + 1  # a layer and more; beyond, the two runs are in different layers
        for index in [*range(third), *range(-third, 0)]:
            (what, a), (same, b) = few[index], more[index]
            if what != same:
                continue  # another order of letting go, of which no peak comes: the test compares whole runs
            layer = Counter({key: b[key] - a[key] for key in sorted({*a, *b}) if b[key] != a[key]})
            rest = Counter({key: a[key] - 3 * layer[key] for key in sorted({*a, *layer}) if a[key] != 3 * layer[key]})
            form = (rest, layer)
            if not any(bounds(other, form) for other in made):
                made = [other for other in made if not bounds(form, other)] + [form]
    return highest([(dict(rest), dict(layer)) for rest, layer in made])


def highest(forms: list[Plain]) -> list[Plain]:
    """Those that are the highest for some model and workload out of many thousands, drawn evenly over orders of magnitude."""
    import numpy as np

    draw = np.random.default_rng(0)
    count = 20_000
    power = {
        "B": (0, 6),
        "L": (3, 15),
        "k": (0, 5),
        "g": (0, 4),
        "d": (4, 8),
        "h": (4, 7),
        "I": (8, 15),
        "V": (9, 18),
        "r": (1, 8),
    }
    values = {symbol: 2.0 ** draw.uniform(*bounds, count) for symbol, bounds in power.items()}
    layers = 2.0 ** draw.uniform(1, 7, count)
    totals = []
    for rest, layer in forms:
        total = np.zeros(count)
        for polynomial, times in ((rest, 1.0), (layer, layers)):
            for symbols, coefficient in polynomial.items():
                total += coefficient * times * np.prod([values[symbol] for symbol in symbols], axis=0)
        totals.append(total)
    # The fewest that are nowhere more than a thousandth below the highest.
    close = np.array(totals) >= 0.999 * np.max(totals, axis=0)
    chosen: list[int] = []
    while close.any():
        best = int(close.sum(axis=1).argmax())
        chosen.append(best)
        close = close[:, ~close[best]]
    return [forms[index] for index in sorted(chosen)]


def bounds(larger: Form, smaller: Form) -> bool:
    """Whether `larger` is at least `smaller` for all sizes and two layers or more."""
    return all(at_least(larger, smaller, layers) for layers in (2, 1000))


def at_least(larger: Form, smaller: Form, layers: int) -> bool:
    """Whether `larger` is at least `smaller` for all sizes, with so many layers."""
    keys = {*larger[0], *larger[1], *smaller[0], *smaller[1]}
    return all(larger[0][key] + layers * larger[1][key] >= smaller[0][key] + layers * smaller[1][key] for key in keys)


def main() -> None:
    """Derive everything, and write it."""
    lines = [
        '"""Written by scripts/closed_forms.py: what a step holds at most, as polynomials in a family\'s sizes. Not edited by hand."""',
        "",
        "# fmt: off",
        "",
        "from __future__ import annotations",
        "",
        '__all__ = ["FAMILIES", "FORMS"]',
        "",
        "FAMILIES: dict[str, str] = {",
    ]
    tables: dict[str, list[str]] = {}
    done = []
    for model_type in FAMILIES:
        try:
            rows = [
                f'    ("{step}", "{dtype}"): {json.dumps(derive(model_type, step, dtype))},'
                for step in STEPS
                for dtype in ("float32", "bfloat16")
            ]
        except Exception as error:  # noqa: BLE001  # a family whose sizes do not factor is left to the meta device, and said
            sys.stderr.write(f"left out: {model_type}: {str(error)[:300]}\n")
            continue
        done.append(model_type)
        tables.setdefault("\n".join(rows), []).append(model_type)
    lines += [f"    {json.dumps(name)}: {json.dumps(FAMILIES[name])}," for name in done] + ["}", ""]
    homes: dict[str, str] = {}
    for number, (text, members) in enumerate(tables.items()):
        lines += [f"_FORM_{number} = {{", text, "}", ""]
        homes |= dict.fromkeys(members, f"_FORM_{number}")
    lines += [
        "FORMS: dict[str, dict[tuple[str, str], list[list[dict[str, int]]]]] = {",
        *(f"    {json.dumps(name)}: {homes[name]}," for name in done),
        "}",
    ]
    TARGET.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
