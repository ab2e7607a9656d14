"""The tokenizers from content vectors to codes."""
