"""The `preflight` step: will this training make sense? Tokens, coverage, memory, and test rows that occur in training data.

It takes seconds and stops what cannot work before any compute is spent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.digest import digest_json
from modelyard.recipes import rows
from modelyard.recipes.keys import Inputs, installed
from modelyard.recipes.sources import PackageSource, parse_base
from modelyard.recipes.steps.step import Step
from modelyard.recipes.steps.train import deciding

if TYPE_CHECKING:
    from modelyard.recipes.context import Context, Outputs

__all__ = ["Preflight"]


class Preflight(Step):
    """See the module."""

    name = "preflight"

    def inputs(self, context: Context) -> Inputs:
        """Base, rows, training options, and the corpus that the base is known to have seen."""
        recipe = context.recipe
        dataset = context.output("data")
        splits: tuple[rows.Split, ...] = ("train", "test") if recipe.data.test is not None else ("train",)
        version = context.version("data")
        files = {split: version.file(dataset[split]) for split in splits}
        return Inputs(
            self.name,
            1,
            config={
                "train": deciding(recipe.train),
                "corpus": source.name if isinstance(source := parse_base(recipe.base), PackageSource) else None,
                "data": {split: rows.view(recipe.data, split) for split in splits},
                "phrases": {where: str(digest_json(list(texts))) for where, texts in context.phrases.items()},
            },
            inputs={"base": context.output("base")["version"]}
            | {f"data.{split}": str(entry.blake3) for split, entry in files.items() if entry is not None},
            packages=installed("torch", "transformers", "peft", "trl"),
        )

    def run(self, context: Context, inputs: Inputs) -> Outputs:  # noqa: ARG002  # the key is all that inputs are for
        """Run the checks of `training.preflight` and the contamination check."""
        from modelyard import training

        recipe, dataset = context.recipe, context.output("data")
        data = context.folder(context.version("data"))
        train_rows = rows.read(data / dataset["train"], recipe.data, "train")
        context.report(self.name, 0.1, f"checking {len(train_rows)} rows against the base")
        plain = training.preflight(context.folder(context.version("base")), train_rows, recipe.train).to_dict()
        for finding in plain["findings"]:
            if finding["level"] == "warning":
                context.note(self.name, finding["message"], finding.get("hint"))
        contamination = {}
        if recipe.data.test is not None:
            context.report(self.name, 0.6, "looking for test rows in the training data")
            test_rows = rows.read(data / dataset["test"], recipe.data, "test")
            contamination = self._contamination(context, train_rows, test_rows)
        return {"preflight": plain, "contamination": contamination}

    def _contamination(self, context: Context, train_rows: rows.Rows, test_rows: rows.Rows) -> dict[str, Any]:
        """What of the test rows occurs in the training rows, and in the base's own corpus where that is known."""
        from modelyard.evaluation import contamination

        texts = [rows.text_of_row(row) for row in test_rows]
        learned = (rows.text_of_row(row) for row in train_rows)
        found = {"train": contamination.check(texts, learned, phrases=context.phrases.get("train", ())).to_dict()}
        source = parse_base(context.recipe.base)
        if isinstance(source, PackageSource):
            corpus = context.resources.corpora(source.name)
            found["base"] = contamination.check(texts, corpus, phrases=context.phrases.get("base", ())).to_dict()
        for where, result in found.items():
            what = "the training data" if where == "train" else "the base's own corpus"
            if result["contaminated"]:
                context.note(self.name, f"{result['contaminated']} of {result['rows']} test rows occur in {what}")
            if result["phrases_found"]:
                shown = ", ".join(f"`{phrase}`" for phrase in result["phrases_found"][:3])
                context.note(self.name, f"{len(result['phrases_found'])} held-out phrases occur in {what}: {shown}")
        return found

    def holds(self, context: Context, outputs: Outputs) -> bool:  # noqa: ARG002  # a finding cannot go away
        """A recorded preflight holds as long as its key does."""
        return True

    def summary(self, outputs: Outputs) -> str:
        """Findings, and the contamination in a few words."""
        warnings = [finding for finding in outputs["preflight"]["findings"] if finding["level"] == "warning"]
        said = [f"{len(warnings)} warning{'s' * (len(warnings) > 1)}" if warnings else "no warnings"]
        for where, result in outputs["contamination"].items():
            name = "training data" if where == "train" else "the base's corpus"
            said.append(f"{result['contaminated']} of {result['rows']} test rows in {name}")
        return ", ".join(said)
