"""The HTTP producer: takes change events, checks them against their contract, publishes them."""
