"""`predict(model, inputs)`: the typed answer of a model of any task to one input or many.

`PREDICTORS` names the function of each task; it is imported when it is first needed. Inputs, results and options by task
stand in `docs/guides/predicting.md`, what works in `docs/reference/tasks.md`.

Guarantees: one input gives one result and a list a list, in order; a row of a batch equals its solo result within float
rounding; nothing is cut off unless `truncation` allows it; results are plain Python values and NumPy arrays, and the
caller's gradient and inference modes are as they were. Knows no references and no files of models: it gets a loaded one.

>>> PREDICTORS["text-classification"]
'text_classification:classify'
"""

from __future__ import annotations

from modelyard.weights.predict.batching import PREDICTORS, TRUNCATIONS, PredictOptions, predict

__all__ = ["PREDICTORS", "TRUNCATIONS", "PredictOptions", "predict"]
