"""Merging: new weights from several, exactly. One method per file; each writes a folder and returns a certificate."""

from modelyard.weights.merge.lora import MergeCertificate, merge_lora

__all__ = ["MergeCertificate", "merge_lora"]
