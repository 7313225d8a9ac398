"""Pictures and the folders they lie in: reading, the dataset layout, the ledger in each map, the annotate runner."""
