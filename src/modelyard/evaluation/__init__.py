"""Evaluation: what a model was asked, what it answered, how sure the difference is, and whether it may be promoted.

`evaluate` turns a loaded model and examples into a report; `compare` pairs two reports; `judge` decides a gate on
reports; `check_contamination` compares an evaluation set with a training corpus. The package knows no registry, no
catalog and no files.

>>> Gate(min=0.9).metric
'accuracy'
"""

from modelyard.evaluation.comparison import Comparison, compare
from modelyard.evaluation.contamination import Contamination
from modelyard.evaluation.contamination import check as check_contamination
from modelyard.evaluation.examples import Example, data_digest, from_messages, from_rows, text_of
from modelyard.evaluation.gates import Gate, Verdict, judge, parse_gate
from modelyard.evaluation.runner import evaluate
from modelyard.evaluation.tasks import TaskConfig, parse_task, register, task_names

__all__ = [
    "Comparison",
    "Contamination",
    "Example",
    "Gate",
    "TaskConfig",
    "Verdict",
    "check_contamination",
    "compare",
    "data_digest",
    "evaluate",
    "from_messages",
    "from_rows",
    "judge",
    "parse_gate",
    "parse_task",
    "register",
    "task_names",
    "text_of",
]
