"""The `yard` command: one file per noun. A command parses, calls one function of the library and renders.

Nothing here decides anything. Data goes to stdout, everything else to stderr; `--json` prints one documented object.
"""
