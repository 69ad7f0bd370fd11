"""Where images come from (sources.py) and how they reach the device in batches (pipeline.py)."""
