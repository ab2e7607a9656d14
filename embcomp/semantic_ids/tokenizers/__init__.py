"""Content vectors -> codes."""
