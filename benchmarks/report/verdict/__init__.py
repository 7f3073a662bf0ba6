"""The verb `compare`: what its words name, differences with intervals, the verdict in words, conditions for CI."""
