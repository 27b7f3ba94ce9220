"""Merging: new weights from several, exactly or as others do. One method per module; each writes a folder and returns a certificate."""

from modelyard.weights.certificate import Certificate
from modelyard.weights.merge.merging import merge, merge_lora

MergeCertificate = Certificate

__all__ = ["MergeCertificate", "merge", "merge_lora"]
