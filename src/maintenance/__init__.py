"""Maintenance: what keeps the lake small and says when it is not whole, on a schedule."""
