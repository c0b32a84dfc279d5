"""The assumption behind docs/adr/0009: asyncio sizes its TLS read buffer by a class attribute."""

import inspect
from asyncio import selector_events
from asyncio.sslproto import SSLProtocol

from byoc_agents.app.run import TLS_BUFFER_BYTES

MAX_TLS_RECORD_BYTES = 16 * 1024 + 2048  # RFC 8446 5.2, with the room that it allows for ciphers


def test_asyncio_has_the_attribute_as_a_number_of_bytes() -> None:
    assert isinstance(vars(SSLProtocol)["max_size"], int)


def test_a_buffer_holds_a_complete_record() -> None:
    assert TLS_BUFFER_BYTES >= MAX_TLS_RECORD_BYTES


def test_a_connection_allocates_its_buffer_by_that_attribute() -> None:
    source = inspect.getsource(SSLProtocol.__init__)
    assert "bytearray(self.max_size)" in source


def test_a_plain_connection_reads_by_such_an_attribute_too() -> None:
    """What `app/http_server.py` lowers for each connection."""
    transport = vars(selector_events)["_SelectorSocketTransport"]
    assert isinstance(transport.max_size, int)
    assert "self.max_size" in inspect.getsource(transport)
