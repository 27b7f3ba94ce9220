"""The Hugging Face Hub's own protocol over a yard: unmodified clients download with `HF_ENDPOINT` set.

This issue's part is reading: repo info, revisions, trees, refs and files with Range. Pushing comes with a later issue;
a write route answers 501 and says so.
"""

from modelyard.hub.app import create

__all__ = ["create"]
