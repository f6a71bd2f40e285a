"""The consumer: batches of the change stream into the lake."""
