"""Where a program runs: shards, several processes, signals, the compiler, files that appear at once."""
