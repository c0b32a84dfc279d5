"""The vendor's side: receives what the daemons send and keeps each message once in ClickHouse."""

__version__ = "0.2.0"
