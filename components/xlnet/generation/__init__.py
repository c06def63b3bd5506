"""Writes text with a language model: continues a prompt, or fills a gap from both sides."""
