"""The settings of an alert forwarder, with known secrets."""

import base64

from byoc_agents.alerts.settings import Settings
from byoc_agents.app.settings import CoreSettings, load

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
INWARD, OUTWARD = "token-of-alertmanager", "token-of-the-plane"
CORE = {"BYOC_ORGANIZATION_ID": "org", "BYOC_SERVICE_ID": "svc", "BYOC_REGION": "eu-west-1"}
OWN = {
    "BYOC_ALERTS_URL": "https://control.example/v1/events",
    "BYOC_ALERTS_TOKEN": OUTWARD,
    "BYOC_ALERTS_SIGNING_SECRET": SECRET,
    "BYOC_ALERTS_LISTEN": "127.0.0.1:0",
    "BYOC_ALERTS_WEBHOOK_TOKEN": INWARD,
    "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
    "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
    "BYOC_ALERTS_ANNOTATIONS": "summary",
}


def settings(**changes: str) -> tuple[CoreSettings, Settings]:
    environ = CORE | OWN | changes
    (core,), (own,) = load([CoreSettings], environ, {}), load([Settings], environ, {})
    return core, own
