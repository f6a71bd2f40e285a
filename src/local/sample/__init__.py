"""Real data and local stand-ins for the systems around the pipeline, shipped for demo and tests.

One real month of the UCI Online Retail data and the ECB's rates (see `data/README.md` for sources
and licences), the change events a cash register would have emitted, a shop and a rate service that
serve them over HTTP, and the answer the pipeline has to reach, computed without the pipeline.
"""

from pathlib import Path

DATA = Path(__file__).parent / "data"
RETAIL_MONTH = DATA / "online_retail_2010_12.parquet"
ECB_RATES = DATA / "ecb_eurofxref_2010_11_2011_12.csv"
