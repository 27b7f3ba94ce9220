"""Task families: one file each, all found by name.

`exact-match` compares text, `json-fields` objects, `number` the final number of a worked answer (GSM8K), `label` one of
a closed set. `register` adds another.
"""

from modelyard.evaluation.tasks import exact_match, json_fields, label, number
from modelyard.evaluation.tasks.base import (
    Family,
    Score,
    Task,
    TaskConfig,
    build_task,
    parse_task,
    register,
    task_names,
)

__all__ = ["Family", "Score", "Task", "TaskConfig", "build_task", "parse_task", "register", "task_names"]

register(exact_match.FAMILY)
register(json_fields.FAMILY)
register(label.FAMILY)
register(number.FAMILY)
