"""The main job on data and a base model that ship with the package, offline: what `yard quickstart` runs.

`support` generates the dataset, `corpus` the text that the base was pretrained on, `pretrain` trains the base and
`resources` hands all three to a recipe under `package:` names.
"""
