"""The cluster's DNS in a pod: NAME.NAMESPACE.svc.cluster.local -> the addresses of its endpoints.

Every other name does not exist. UDP only, type A only: the cluster has neither Services' addresses
nor IPv6. It runs in a plain Debian, so it imports nothing of ours.
"""

import json
import os
import socket
import ssl
import struct
import time
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
API = os.environ.get("API_SERVER", "")
KEPT_SECONDS = 2
SUFFIX = ("cluster", "local")
NO_ERROR, NO_SUCH_NAME = 0x8580, 0x8583  # a response, authoritative; RFC 1035, 4.1.1
TYPE_A, IN, NAME_AT_12 = 1, 1, 0xC00C

Found = list[str] | None  # None if there is no such Service


class Endpoints:
    """Addresses of Services, asked of the API server and kept for two seconds."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], tuple[float, Found]] = {}
        self._context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")

    def find(self, service: str, namespace: str) -> Found:
        """Return the ready addresses of a Service."""
        until, found = self._kept.get((service, namespace), (0.0, None))
        if time.monotonic() >= until:
            found = self._ask(service, namespace)
            self._kept[service, namespace] = time.monotonic() + KEPT_SECONDS, found
        return found

    def _ask(self, service: str, namespace: str) -> Found:
        selector = f"labelSelector=kubernetes.io/service-name%3D{service}"
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?{selector}"
        token = Path(ACCOUNT, "token").read_text()  # renewed by the kubelet
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(API + path, headers=headers)
        with urllib.request.urlopen(request, timeout=5, context=self._context) as answer:
            slices: list[dict[str, Any]] = json.load(answer)["items"]
        if not slices:
            return None
        endpoints = [one for part in slices for one in part.get("endpoints") or []]
        ready = [one for one in endpoints if one["conditions"].get("ready", True)]
        return [address for one in ready for address in one["addresses"]]


def answer(query: bytes, endpoints: Endpoints) -> bytes:
    """Return the answer to one question, in the format of RFC 1035."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
        at += query[at] + 1
    (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
    if tuple(labels[-2:]) == SUFFIX:
        labels = labels[:-2]
    known = len(labels) == 3 and labels[-1] == "svc"
    addresses = endpoints.find(labels[0], labels[1]) if known else None
    given = (addresses or []) if kind == TYPE_A else []
    flags = NO_SUCH_NAME if addresses is None else NO_ERROR
    made = query[:2] + struct.pack(">HHHHH", flags, 1, len(given), 0, 0) + query[12 : at + 5]
    for address in given:
        made += struct.pack(">HHHIH", NAME_AT_12, TYPE_A, IN, KEPT_SECONDS, 4)
        made += socket.inet_aton(address)
    return made


def main() -> None:
    """Answer until killed; a question that cannot be answered is logged, and asked again."""
    endpoints = Endpoints()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 53))
        while True:
            query, client = server.recvfrom(2048)
            try:
                server.sendto(answer(query, endpoints), client)
            except (OSError, ValueError, IndexError, struct.error) as error:
                print(f"no answer: {error}", flush=True)


if __name__ == "__main__":
    main()
