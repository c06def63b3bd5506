"""Container images: building them, reading their references, asking a registry for digests."""
