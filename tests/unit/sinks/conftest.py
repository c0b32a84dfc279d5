"""One botocore session for the tests of the AWS sinks, a file at a time."""

import pytest
from aiobotocore.session import AioSession

from byoc_agents.egress.aws import aws_session
from byoc_agents.egress.gate import Gate
from tests.unit.sinks.s3_sinks import HERE


@pytest.fixture(scope="module")
def session() -> AioSession:
    """One botocore session for all: its models are slow to load."""
    made = aws_session(Gate([]), HERE)
    made.set_credentials("AKIAEXAMPLE", "secret-key-of-test", "session-token-of-test")
    return made
