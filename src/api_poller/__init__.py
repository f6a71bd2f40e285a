"""The scheduled poller: reads a source's API, finds what changed and publishes it.

A source is declared in a file (`declaration`). `listing` reads it page by page with `pagination`,
`periods` and `records` (pure) over `http` and what lies below it (`transport`, `auth`, `tokens`,
`credentials`); `changes` and `snapshot` (pure) find what changed, `state` remembers it, `poll` is
the use case, `composition` and `app` put it all together.
"""
