"""Where images come from (sources.py), are decoded once (kept.py), and reach the device in batches (pipeline.py)."""
