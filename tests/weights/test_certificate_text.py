"""Certificates in words: what a person must see is there, aligned, bounded and printable."""

from __future__ import annotations

from modelyard.weights.certificate import THIS_MACHINE, Certificate
from modelyard.weights.certificate_text import render, summarize


def check(name: str, **values: object) -> dict[str, object]:
    """A measured difference of logits."""
    return {
        "name": name,
        "rows": 1,
        "scale": 2.0,
        "max_difference": 1e-6,
        "mean_difference": 1e-7,
        "kl": 2e-9,
        "top1_agreement": 1.0,
        "tokens": 0,
        "equal_tokens": 0,
        "tolerance": 1e-3,
        "holds": True,
    } | values


def example() -> Certificate:
    """A merge with something of everything."""
    return Certificate(
        "merge",
        "peft",
        options={"mode": "peft", "threads": 2, "dtype": None},
        exactness=THIS_MACHINE,
        inputs={"base": {"model.safetensors": "aa" * 32}},
        outputs={"model.safetensors": "cc" * 32},
        matched={"merged": 11, "replaced": 0},
        changes=[{"tensor": f"layer.{at}", "operation": "peft", "rank": 3, "changed": 5} for at in range(11)],
        checks=[
            check("length 4: logits"),
            check("padded: logits", max_difference=5e-4, top1_agreement=0.75),
            check("padded: greedy tokens", tokens=16, equal_tokens=12, holds=False),
        ],
        warnings=["tied embeddings were separated"],
        machine={"processor": "Some CPU", "threads": 2, "libraries": {"torch": "2.13.0"}},
    )


def test_all_of_it() -> None:
    """Operation, exactness, digests, counts, eight tensors, every check in a table, warnings and the machine."""
    lines = render(example())
    text = "\n".join(lines)
    assert lines[0] == "merge by peft: exact on this machine"
    wanted = ["options: mode peft, threads 2", "from base: model.safetensors aaaaaaaaaaaa", "counts: merged 11"]
    wanted += ["wrote: model.safetensors cccccccccccc", "tensors: 11", "layer.7", "and 3 more tensors"]
    wanted += [
        "warning: tied embeddings were separated",
        "machine: processor Some CPU, threads 2, libraries torch 2.13.0",
    ]
    assert [part for part in wanted if part not in text] == []
    assert "layer.8" not in text
    (row,) = [line for line in lines if "padded: logits" in line and "measured" not in line]
    assert row.split()[2:] == ["0.0005", "2", "0.002", "2e-09", "75.0%", "-", "yes"]


def test_a_summary_names_the_worst() -> None:
    """The largest difference relative to its scale, the least agreement, the tokens of all rows, and what does not hold."""
    assert summarize(example()) == [
        "merge by peft: exact on this machine",
        "merged 11",
        (
            "measured: at most 0.00025 of the largest value (padded: logits), KL 2e-09, top-1 agrees 75.0%,"
            " 12 of 16 greedy tokens agree, beyond the tolerance: padded: greedy tokens"
        ),
        "warning: tied embeddings were separated",
    ]


def test_nothing_that_a_terminal_obeys() -> None:
    """Names come from files: what is not printable is escaped."""
    made = Certificate("convert", warnings=["a\x1b[31mred"], changes=[{"tensor": "b\x07"}])
    assert not any("\x1b" in line or "\x07" in line for line in render(made) + summarize(made))


def test_other_checks_are_counted() -> None:
    """A check without a scale, such as bytes read back, is named."""
    made = Certificate("convert", "bin", checks=[{"name": "read back", "tensors": 3, "differing": 0, "holds": True}])
    assert summarize(made)[-1] == "measured: read back: as it was"


def test_two_answers_are_two_lines() -> None:
    """A merge into a quantized base is measured against both answers; neither hides the other."""
    checks = [check("dequantized: logits"), check("original: logits", max_difference=1.0, holds=False)]
    lines = summarize(Certificate("merge", "lora/1", checks=checks))
    assert [line.partition(" of the")[0] for line in lines[1:]] == [
        "measured (dequantized): at most 5e-07",
        "measured (original): at most 0.5",
    ]
