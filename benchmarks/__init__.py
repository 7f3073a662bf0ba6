"""The harness: data, training, metrics, records, reports, command line."""
