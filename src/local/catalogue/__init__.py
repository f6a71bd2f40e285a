"""The data catalogue: what the contracts, the logs, the gold views and the lake say of the tables,
as pages for people and as statements for engines.
"""
