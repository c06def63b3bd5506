"""Container images: builds them, parses their references, and asks registries for their digests."""
