"""The parts of `load`: one module for each thing that loading a model decides or checks.

`options` and `legacy` say what was asked for, `sources` where the files are, `configs` and `classes` what is built, `heads`
and `report` what of it came from the files, `preprocessors` what makes its inputs, `lock` that only one load runs.
"""
