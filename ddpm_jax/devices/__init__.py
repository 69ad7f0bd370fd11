"""Sharding, multi-host runs, signals, the compiler, and atomic file writes."""
