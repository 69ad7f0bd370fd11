"""The sides of a comparison: a module for ours and one per peer, each imported in its own process."""
