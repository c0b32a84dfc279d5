"""One destination, names that lead where a test says, and what a gate has refused."""

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from byoc_agents.egress.destinations import Destination
from byoc_agents.egress.gate import Gate, Refusal

API = Destination("api.example.com", 443, "https")


class FakeNames(AbstractResolver):
    """Answers every name with the same addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        return [
            ResolveResult(hostname=host, host=a, port=port, family=family, proto=0, flags=0)
            for a in self.addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Counter:
    """A recorder of the gate's reports."""

    def __init__(self) -> None:
        self.refused: list[Refusal] = []

    def __call__(self, refusal: Refusal, detail: str) -> None:
        assert detail
        self.refused.append(refusal)


async def get(gate: Gate, url: str) -> int:
    async with gate.session() as session, session.get(url) as response:
        return response.status
