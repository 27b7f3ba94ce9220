"""Writing text: chat templates, prompts, the decoding loop, transformers' own loop, streams, tokens and pieces."""
