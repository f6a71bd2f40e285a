"""The whole pipeline on a laptop: what AWS runs around the functions, in miniature and in process.

Embedded AWS services, an HTTP gateway, a scheduler and an event source mapping call the very
handlers that are deployed, with the very payloads AWS sends. Nothing in this package is ever
deployed, and no function imports it.
"""
