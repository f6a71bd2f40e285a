"""The lake: current-state tables, tombstones, change log and quarantine on an object store.

Tables are Apache Iceberg v2, copy-on-write, without delete files: any engine reads them as they
are. `lake.lake.Lake` is the port the consumer calls; everything else in this room is how it keeps
its word.
"""
