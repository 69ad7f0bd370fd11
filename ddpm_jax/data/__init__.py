"""Where images come from (sources, files, tfds), are decoded once (cache), and reach the devices in batches (pipeline)."""
