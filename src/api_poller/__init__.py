"""The scheduled poller: reads a source's API, finds what changed and publishes it.

Layers, each ignorant of the one after it: `changes` (pure), `http`, `credentials` and `state`
(edges), `platzi` and `ecb` (what a source looks like), `poll` (the use case), `app` (the
composition root).
"""
