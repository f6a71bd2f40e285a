"""The language of Freshet: change events, contracts, wire format and merge.

Every function speaks this language and none of them imports another. Modules here are pure except
the adapters `kinesis`, `s3` and `telemetry`. `arrow` and `merge` need pyarrow and are therefore
imported by the lake and the consumer only: producer and poller stay light.
"""
